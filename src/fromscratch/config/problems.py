"""Turns pydantic's errors into sentences for the user: key, value, rule, and a suggestion."""

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from fromscratch.config.base import Slot, tables_in

MAX_MESSAGES = 20
MAX_SHOWN_CHARACTERS = 60
MIN_SIMILARITY = 0.6  # of difflib's ratio, from 0 to 1; its default
BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
COMMON_NAMES = {
    # nanoGPT, the book "Build a Large Language Model (From Scratch)", transformers
    "lr": "learning_rate",
    "batch_size": "global_batch",
    "per_device_train_batch_size": "global_batch",
    "block_size": "context_length",
    "max_seq_len": "context_length",
    "max_length": "context_length",
    "n_ctx": "context_length",
    "n_positions": "context_length",
    "max_position_embeddings": "context_length",
    "n_layer": "num_layers",
    "n_layers": "num_layers",
    "num_hidden_layers": "num_layers",
    "n_head": "num_heads",
    "n_heads": "num_heads",
    "num_attention_heads": "num_heads",
    "n_embd": "embedding_dim",
    "emb_dim": "embedding_dim",
    "d_model": "embedding_dim",
    "hidden_size": "embedding_dim",
    "drop_rate": "dropout",
    "qkv_bias": "attention_bias",
    "bias": "attention_bias",
    "tie_weights": "tied_head",
    "tie_word_embeddings": "tied_head",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_iters": "data.tokens",
    "max_steps": "data.tokens",
    "dtype": "precision",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "warmup_iters": "warmup_steps",
    "min_lr": "min_learning_rate",
    "grad_clip": "clip",
    "max_grad_norm": "max_norm",
    "eval_interval": "evaluate_every",
    "eval_freq": "evaluate_every",
    "eval_steps": "evaluate_every",
    "eval_iter": "eval.tokens",
    "eval_iters": "eval.tokens",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "start_context": "prompts",
    "init_from": "start_from",
}
COMMON_VALUES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "adam": "adamw", "cosine": "warmup-cosine"}
MACHINE_OPTIONS = {
    "device": "--device",
    "compile": "--compile",
    "micro_batch": "--micro-batch",
    "micro_batch_size": "--micro-batch",
    "gradient_accumulation_steps": "--micro-batch",
    "gradient_checkpointing": "--activation-checkpointing",
    "num_gpus": "--processes",
    "out_dir": "--runs-dir",
    "output_dir": "--runs-dir",
}
"""Options of ``train`` for what other programs keep in their config files: a run file does not describe the machine."""
RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number, written without quotes or units",
    "bool_type": "must be true or false",
    "string_type": "must be text in quotes",
    "string_too_short": "must not be empty",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list in square brackets",
    "greater_than": "must be greater than {gt:.20g}",
    "greater_than_equal": "must be at least {ge:.20g}",
    "less_than": "must be less than {lt:.20g}",
    "less_than_equal": "must be at most {le}",
}


class KnownKey(NamedTuple):
    """A key of the run file, and the kind of slot that has it (None outside of slots)."""

    name: str
    path: str
    kind: str | None


class Finding(NamedTuple):
    """A pydantic error with the key as the user wrote it, and the table that should have this key."""

    item: Any
    key: str
    table: type[BaseModel] | None
    choices: list[type[BaseModel]]
    """Tables or slots that the field accepts."""


def error_messages(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Returns one sentence per problem, in the order of the fields; after ``MAX_MESSAGES`` only their number."""
    items = error.errors(include_url=False)
    messages = [_message(_locate(item, root), root) for item in items[:MAX_MESSAGES]]
    if len(items) > MAX_MESSAGES:
        messages.append(f"and {len(items) - MAX_MESSAGES} more")
    return messages


def suggestion(name: str, known: list[str]) -> str:
    """Returns ``; did you mean 'x'?`` for a misspelt or shortened name; empty if no known name is similar."""
    short = name[:MAX_SHOWN_CHARACTERS].lower()
    longer = [candidate for candidate in known if short and candidate.startswith(short)]
    close = longer or get_close_matches(short, known, n=1, cutoff=MIN_SIMILARITY)
    return f"; did you mean '{close[0]}'?" if close else ""


def shown(value: Any) -> str:
    """Formats a value as in a run file; shortens long ones."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        inner = ", ".join("[...]" if isinstance(item, list) else shown(item) for item in value[:3])
        return f"[{inner}, ...]" if len(value) > 3 else f"[{inner}]"
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    except ValueError:  # an integer with thousands of digits
        return "a huge number"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def _message(found: Finding, root: type[BaseModel]) -> str:
    key, problem, context = found.key, found.item["type"], found.item.get("ctx", {})
    given = found.item["input"]
    if problem == "extra_forbidden":
        return f"{key}: unknown key{_unknown_key(found, root)}"
    if problem == "missing":
        return f"{key}: is required{_required_within(found.choices)}"
    if problem == "value_error":  # of a whole table, or of one value
        where = key if isinstance(given, dict) else f"{key} = {shown(given)}"
        return f"{where}: {context['error']}"
    if problem == "union_tag_not_found":
        return f"{key}: has no kind; it must be {_one_of(_kinds(found.choices), quote=True)}"
    if problem == "union_tag_invalid":
        return f"{key}.kind = {shown(given['kind'])}: unknown kind, {_choice(given['kind'], _kinds(found.choices))}"
    if problem == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"{key} = {shown(given)}: {_choice(given, allowed)}"
    if problem.startswith("model_"):
        return f"{key} = {shown(given)}: {_table_rule(found.choices)}"
    rule = RULES.get(problem, str(found.item["msg"]).replace("Input should", "must", 1))
    return f"{key} = {shown(given)}: {rule.format(**context)}"


def _choice(given: Any, allowed: list[str]) -> str:
    meant = COMMON_VALUES.get(str(given), str(given))
    return f"must be {_one_of(allowed)}{suggestion(meant, allowed) if len(allowed) > 1 else ''}"


def _one_of(allowed: list[str], *, quote: bool = False) -> str:
    names = [f'"{name}"' for name in allowed] if quote or len(allowed) == 1 else allowed
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def _table_rule(choices: list[type[BaseModel]]) -> str:
    kinds = _kinds([choice for choice in choices if issubclass(choice, Slot)])
    return f"must be {_one_of(kinds, quote=True)}, or a table with that kind" if kinds else "must be a table"


def _required_within(choices: list[type[BaseModel]]) -> str:
    names = [name for table in choices for name, field in table.model_fields.items() if field.is_required()]
    return f", with {', '.join(names)} at least" if names else ""


def _unknown_key(found: Finding, root: type[BaseModel]) -> str:
    """Suggests the same name in another table, a similar one here, or a similar one in another table."""
    name = found.key.rpartition(".")[2]
    if option := MACHINE_OPTIONS.get(name):
        return f", because a run file does not describe the machine; give {option} on the command line"
    name = COMMON_NAMES.get(name, name)
    known = sorted(found.table.model_fields) if found.table else []
    if name in known:
        return f"; did you mean '{name}'?"
    keys = list(known_keys(root))
    if any(key.path == name for key in keys):
        return f"; did you mean '{name}'?"
    same = [key for key in keys if key.name == name]
    siblings = sorted({key.kind for key in same if key.path == found.key and key.kind})
    if siblings:
        return f" for kind = {shown(_kind_of(found.table))}; it belongs to kind = {_one_of(siblings, quote=True)}"
    if same:
        return f"; did you mean '{same[0].path}'?"
    if similar := suggestion(name, known):
        return similar
    close = get_close_matches(name[:MAX_SHOWN_CHARACTERS], [key.name for key in keys], 1, MIN_SIMILARITY)
    elsewhere = next((key.path for key in keys if key.name in close), None)
    if elsewhere:
        return f"; did you mean '{elsewhere}'?"
    return f"; known here: {', '.join(known)}" if known else ""


def known_keys(table: type[BaseModel], above: str = "") -> Iterator[KnownKey]:
    """Yields every key of a run file except ``kind``, which every slot has."""
    for name, field in table.model_fields.items():
        if name != "kind":
            yield KnownKey(name, above + name, _kind_of(table))
        for inner in tables_in(field.annotation):
            yield from known_keys(inner, f"{above}{name}.")


def _locate(item: Any, root: type[BaseModel]) -> Finding:
    """Finds the table and the key of an error; skips the tags that pydantic adds to a path for the kind of a slot."""
    key = ""
    table: type[BaseModel] | None = root
    choices: list[type[BaseModel]] = [root]
    was_tag = False
    for part in item["loc"]:
        tagged = next((choice for choice in choices if part == _kind_of(choice)), None)
        was_tag = not was_tag and tagged is not None and (len(choices) > 1 or part not in tagged.model_fields)
        if tagged is not None and was_tag:
            choices = [tagged]
            continue
        table = choices[0] if len(choices) == 1 else None
        field = table.model_fields.get(str(part)) if table else None
        choices = list(tables_in(field.annotation)) if field else []
        key = _extended(key, part)
    return Finding(item, key or "run file", table, choices)


def _extended(key: str, part: str | int) -> str:
    if isinstance(part, int):
        return f"{key}[{part}]"
    written = part if BARE_KEY.fullmatch(part) else shown(part)
    return f"{key}.{written}" if key else written


def _kinds(choices: list[type[BaseModel]]) -> list[str]:
    return [kind for choice in choices if (kind := _kind_of(choice))]


def _kind_of(table: type[BaseModel] | None) -> str | None:
    field = table.model_fields.get("kind") if table else None
    return str(field.default) if field else None
