"""The Python files of a published model: the modules of ``models/`` that it uses, found by their imports."""

import ast
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from fromscratch.config.base import Slot
from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.models.factory import SLOT_NAMES

TEMPLATES = Path(__file__).parent / "templates"
MODEL_PACKAGE = "fromscratch.models"
CODE_FILES = ("configuration_fromscratch.py", "modeling_fromscratch.py")
PLACEHOLDER = "# MODEL FILES"


def model_code_files(config: GPTConfig) -> dict[str, str]:
    """Returns names and texts of the Python files that a published folder needs.

    transformers keeps one model class per configuration class, and old versions distinguish local folders
    by their last name only. The file of slots is named by its content, and both templates import it. So two
    models with different mechanisms never share a class.

    Raises:
        UsageError: a mechanism is outside ``models/``.
    """
    slots = _slots_text(config)
    slots_module = f"slots_{sha256(slots.encode()).hexdigest()[:8]}"
    files = {f"{slots_module}.py": slots}
    pending = ["gpt", *(_module_and_class(slot)[0] for slot in _slots_of(config).values())]
    while pending:
        module = pending.pop()
        if f"{module}.py" not in files:
            text = Path(str(import_module(f"{MODEL_PACKAGE}.{module}").__file__)).read_text("utf-8")
            files[f"{module}.py"] = text
            pending += _relative_imports(text)
    imports = "\n".join(f"from .{name.removesuffix('.py')} import __doc__ as _  # noqa: F401" for name in sorted(files))
    for name in CODE_FILES:
        template = (TEMPLATES / name).read_text("utf-8").replace(PLACEHOLDER, imports)
        files[name] = template.replace("from .slots import", f"from .{slots_module} import")
    return files


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
