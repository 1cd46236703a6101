"""Turns what pydantic found into sentences for the user: key, value, rule, and what was probably meant."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

COMMON_NAMES = {
    "lr": "learning_rate",
    "batch_size": "global_batch",
    "block_size": "context_length",
    "n_layer": "num_layers",
}
RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number, written without quotes or units",
    "bool_type": "must be true or false",
    "string_type": "must be text in quotes",
    "finite_number": "must be a finite number",
    "missing": "is required",
    "tuple_type": "must be a list",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def sentences(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One sentence per problem, in the order of the file's tables."""
    found = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        keys, table = _walk(path, root)
        found.append(_sentence(item, ".".join(keys) or "run file", table))
    return list(dict.fromkeys(found))


def suggestion(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` for a misspelt name, or nothing."""
    if COMMON_NAMES.get(name) in known:
        return f"; did you mean '{COMMON_NAMES[name]}'?"
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _sentence(item: Any, key: str, table: type[BaseModel] | None) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted(table.model_fields) if table else []
        name = key.rpartition(".")[2]
        return f"{key}: unknown key{suggestion(name, known) or '; known here: ' + ', '.join(known)}"
    if kind == "missing":
        return f"{key}: is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        allowed = [tag.strip().strip("'") for tag in str(context.get("expected_tags", "")).split(",") if tag]
        given = context.get("tag", value)
        listed = f"; it must be one of {', '.join(allowed)}" if allowed else ""
        return f"{key}.kind = {given!r}: unknown kind{suggestion(str(given), allowed)}{listed}"
    if kind == "literal_error":
        allowed = [a.strip().strip("'") for a in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"{key} = {value!r}: must be one of {', '.join(allowed)}{suggestion(str(value), allowed)}"
    if kind == "value_error":
        return f"{key}: {context['error']}"
    if kind == "string_pattern_mismatch":
        return f'{key} = {value!r}: must be a whole number, a multiple such as "20x", or "all"'
    rule = RULES.get(kind) or str(item["msg"]).replace("Input should", "must", 1)
    return f"{key} = {value!r}: {rule}"


def _walk(path: list[str], root: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys a user wrote (without the tags pydantic adds for unions) and the table they stand in."""
    keys: list[str] = []
    table: type[BaseModel] | None = root
    options: list[type[BaseModel]] = []
    for part in path:
        tagged = next((option for option in options if part == _kind_of(option)), None)
        if tagged is not None and len(options) > 1:
            table, options = tagged, []
            continue
        if _is_branch_name(part):
            continue
        keys.append(part)
        if len(options) == 1:
            table = options[0]
        field = table.model_fields.get(part) if table else None
        options = list(_tables_in(field.annotation)) if field else []
    return keys, table


def _is_branch_name(part: str) -> bool:
    return part in ("int", "str", "float") or part.startswith(("constrained-", "function-"))


def _kind_of(table: type[BaseModel]) -> Any:
    field = table.model_fields.get("kind")
    return field.default if field else None


def _tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables_in(inner)
