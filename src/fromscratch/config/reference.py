"""Generates the reference of the run file from the config classes; ``make docs`` writes it."""

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fromscratch.config.base import Slot, tables_in
from fromscratch.config.model import ModelConfig
from fromscratch.config.run import RunConfig

INTRODUCTION = """\
# The run file

```
fromscratch train run.toml --set train.seed=7 --set 'train.clip={ kind = "norm", max_norm = 1.0 }'
```

A run file is TOML with four tables, and a fifth one for fine-tuning. `base = "other.toml"` at its top reads another file first; the keys of this file replace those of the other. A relative path starts at the folder of the file that it is written in, or at the current folder. `--set train.seed=7` on the command line replaces one key. A slot is filled by a `kind`: `clip = { kind = "norm", max_norm = 1.0 }`. `attention = "explicit"` is short for a kind with its defaults. Where a preset or a `base` file sets a key that may be left out, `"none"` takes it away: `residual = "none"`. Unknown keys are errors.

`make docs` generates this page from the classes in `src/fromscratch/config/`.
"""  # noqa: E501


def reference() -> str:
    """Returns the whole page in Markdown."""
    parts = [INTRODUCTION]
    for name, field in RunConfig.model_fields.items():
        tables = list(tables_in(field.annotation))
        for table in tables:
            kind = f", kind = {table.model_fields['kind'].default}" if len(tables) > 1 else ""
            parts.append(f"## [{name}]{kind}\n\n{_plain(table.__doc__)}\n")
            parts.extend(_table(table))
            if issubclass(table, ModelConfig) and table.presets:
                parts.append(_presets(table.presets))
    return "\n".join(parts)


def _table(table: type[BaseModel]) -> Iterator[str]:
    rows, slots = [], []
    for name, field in table.model_fields.items():
        choices = [option for option in tables_in(field.annotation) if issubclass(option, Slot)]
        if choices:
            slots.append(_slot(name, choices))
            default = f"`{field.default.kind}`" if field.default else "none"
            rows.append(f"| `{name}` | slot | {default} | see below |")
        else:
            rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {_plain(field.description)} |")
    yield "| key | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    yield from slots


def _slot(name: str, choices: list[type[Slot]]) -> str:
    lines = [f"### {name}\n", "| kind | settings | |", "|---|---|---|"]
    for choice in choices:
        settings = [
            f"`{key}` ({_type(field)}, {_default(field)}): {_plain(field.description)}".removesuffix(": ")
            for key, field in choice.model_fields.items()
            if key != "kind"
        ]
        kind = choice.model_fields["kind"].default
        lines.append(f"| `{kind}` | {'<br>'.join(settings)} | {_plain(choice.__doc__)} |")
    return "\n".join(lines) + "\n"


def _presets(presets: dict[str, dict[str, Any]]) -> str:
    first, *rest = presets.values()
    keys = [key for key in first if all(key in values for values in rest)]
    lines = ["### Presets\n", f"| preset | {' | '.join(keys)} | also |", "|---" * (len(keys) + 2) + "|"]
    for name, values in presets.items():
        others = ", ".join(f"`{key} = {_as_toml(value)}`" for key, value in values.items() if key not in keys)
        lines.append(f"| `{name}` | {' | '.join(str(values[key]) for key in keys)} | {others} |")
    return "\n".join(lines) + "\n"


def _as_toml(value: Any) -> str:
    """As a run file writes it in one line."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_as_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value)


def _type(field: FieldInfo) -> str:
    inner = [table for table in tables_in(field.annotation) if not issubclass(table, Slot)]
    tables = [f"table of {', '.join(f'`{key}`' for key in table.model_fields)}" for table in inner]
    return " or ".join([*dict.fromkeys(_type_names(field.annotation)), *tables])


def _type_names(annotation: Any) -> Iterator[str]:
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    if get_origin(annotation) is Literal:
        yield ", ".join(f"`{value}`" for value in get_args(annotation))
    elif get_origin(annotation) is tuple:
        yield "list of texts"
    elif annotation in plain:
        yield plain[annotation]
    else:
        for inner in get_args(annotation):
            yield from _type_names(inner)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or isinstance(field.default, BaseModel):
        return ""
    if isinstance(field.default, tuple):
        return "`" + str(list(field.default)).replace("'", '"') + "`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _plain(docstring: str | None) -> str:
    """Turns the first paragraph of a docstring into one line of Markdown."""
    return " ".join((docstring or "").split("\n\n")[0].split()).replace("``", "`")


if __name__ == "__main__":
    sys.stdout.write(reference())
