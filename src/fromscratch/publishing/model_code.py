"""The Python files of a published model: the modules of ``models/`` that it uses, found by their imports."""

import ast
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from fromscratch.config.base import Slot
from fromscratch.config.model import GPTConfig
from fromscratch.config.recurrent import RecurrentConfig
from fromscratch.errors import UsageError
from fromscratch.models.factory import SLOT_NAMES

TEMPLATES = Path(__file__).parent / "templates"
MODEL_PACKAGE = "fromscratch.models"
CONFIGURATION, MODELING, MODELING_RECURRENT = (
    f"{name}.py" for name in ("configuration_fromscratch", "modeling_fromscratch", "modeling_recurrent")
)
PLACEHOLDER = "# MODEL FILES"


def model_code_files(config: GPTConfig | RecurrentConfig) -> dict[str, str]:
    """Returns names and texts of the Python files that a published folder needs.

    transformers keeps one model class per configuration class, and old versions distinguish local folders
    by their last name only. The file of slots is named by its content, and both templates import it. So two
    models with different mechanisms never share a class.

    Raises:
        UsageError: a mechanism is outside ``models/``.
    """
    if isinstance(config, RecurrentConfig):
        return _with_templates(
            _module_files(["recurrent"]), {CONFIGURATION: CONFIGURATION, MODELING: MODELING_RECURRENT}
        )
    slots = _slots_text(config)
    slots_module = f"slots_{sha256(slots.encode()).hexdigest()[:8]}"
    modules = ["gpt", *(_module_and_class(slot)[0] for slot in _slots_of(config).values())]
    files = {f"{slots_module}.py": slots, **_module_files(modules)}
    whole = _with_templates(files, {CONFIGURATION: CONFIGURATION, MODELING: MODELING})
    return whole | {MODELING: whole[MODELING].replace("from .slots import", f"from .{slots_module} import")}


def _module_files(pending: list[str]) -> dict[str, str]:
    """Returns names and texts of modules of ``models/``, and of those that they import."""
    files: dict[str, str] = {}
    while pending:
        module = pending.pop()
        if f"{module}.py" not in files:
            text = Path(str(import_module(f"{MODEL_PACKAGE}.{module}").__file__)).read_text("utf-8")
            files[f"{module}.py"] = text
            pending += _relative_imports(text)
    return files


def _with_templates(files: dict[str, str], templates: dict[str, str]) -> dict[str, str]:
    """Returns the files with those of templates, by the names that they get; each imports all others."""
    imports = "\n".join(f"from .{name.removesuffix('.py')} import __doc__ as _  # noqa: F401" for name in sorted(files))
    texts = {name: (TEMPLATES / template).read_text("utf-8") for name, template in templates.items()}
    return files | {name: text.replace(PLACEHOLDER, imports) for name, text in texts.items()}


def _slots_of(config: GPTConfig) -> dict[str, Slot]:
    """The slots that are filled, by name."""
    return {name: slot for name in SLOT_NAMES if (slot := getattr(config, name)) is not None}


def _module_and_class(slot: Slot) -> tuple[str, str]:
    """Returns the module in ``models/`` and the class that a slot names."""
    module, _, attribute = slot.builds.partition(":")
    package, _, name = module.rpartition(".")
    if package != MODEL_PACKAGE:
        raise UsageError(f"{slot.builds}: is outside of {MODEL_PACKAGE}, so a published model cannot contain it")
    return name, attribute


def _relative_imports(text: str) -> list[str]:
    """Returns the modules of the same folder that a source file imports."""
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
    return [str(node.module) for node in nodes if node.level == 1 and node.module]


def _slots_text(config: GPTConfig) -> str:
    imports, makers = {"from .mechanism import Slots"}, []
    for name, slot in _slots_of(config).items():
        module, attribute = _module_and_class(slot)
        imports.add(f"from .{module} import {attribute}")
        arguments = "".join(f", {key}={value!r}" for key, value in slot.maker().keywords.items())
        makers.append(f"    {name}=partial({attribute}{arguments}),")
    docstring = '"""The mechanisms of this model; written when it was published."""'
    lines = [docstring, "", "from functools import partial", "", *sorted(imports), "", "SLOTS = Slots(", *makers, ")"]
    return "\n".join(lines) + "\n"
