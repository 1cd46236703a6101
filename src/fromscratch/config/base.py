"""The two kinds of config object: a frozen table of fields, and a slot that a ``kind`` fills."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

NONE = "none"
"""Takes away what a preset or a ``base`` file has set, of a key that may be left out."""


class Table(BaseModel):
    """A table of a run file: immutable, strict about types, unknown keys refused.

    The docstring under each field is its documentation: unit, range, how to switch it off.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _take_away(cls, values: Any) -> Any:
        """Runs after presets are filled in, and leaves out what the file wants none of."""
        if not isinstance(values, dict):
            return values
        return {
            key: value
            for key, value in values.items()
            if value != NONE or (field := cls.model_fields.get(key)) is None or not can_be_none(field.annotation)
        }


class Slot(Table):
    """One way to fill a slot, chosen by its ``kind``; ``builds`` names what the kind constructs.

    The name (``package.module:attribute``) is imported only by ``build``, so that configs load
    without torch and the packages that hold the mechanisms stay above this one.
    """

    builds: ClassVar[str]
    weights: ClassVar[str] = ""
    """Kinds with the same name here compute the same from the same weights. Empty: no other kind does."""
    free_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings on which neither the shape nor the meaning of a weight depends."""

    def weight_settings(self) -> dict[str, Any]:
        """The settings that must agree for the weights of another model to fit."""
        settings = self.model_dump(exclude={*self.free_settings, "kind"})
        return {"kind": self.weights or type(self).model_fields["kind"].default, **settings}

    def build(self, *arguments: Any, **context: Any) -> Any:
        """Calls what the slot names with the slot's own fields and what the caller knows."""
        return self.maker()(*arguments, **context)

    def maker(self) -> partial[Any]:
        """What the slot names, with the slot's own fields filled in: to be called any number of times."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        return partial(import_target(self.builds), **own)


def import_target(name: str) -> Any:
    """Imports what ``package.module:attribute`` names."""
    module_name, _, attribute = name.partition(":")
    return getattr(import_module(module_name), attribute)


class SlotMarker:
    """Lets ``kind`` choose among the members of a union of tables; a single kind is marked in the same way.

    ``Annotated[AdamW, SLOT]`` becomes ``Annotated[AdamW | Lion, SLOT]``: a new kind is one more member.

    Args:
        default: the kind of a table that names none. A slot of one kind names it here, so that run files without
            ``kind`` stay valid when a second kind joins.
        short: whether ``attention = "explicit"`` means ``attention = { kind = "explicit" }``.
    """

    def __init__(self, default: str | None = None, *, short: bool = True) -> None:
        self._default = default
        self._short = short

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if get_origin(source) in (Union, UnionType):
            source = Annotated[source, Field(discriminator="kind")]
        return core_schema.no_info_before_validator_function(self._with_kind, handler.generate_schema(source))

    def _with_kind(self, value: Any) -> Any:
        if isinstance(value, str) and self._short:
            return {"kind": value}
        return {"kind": self._default, **value} if self._default and isinstance(value, dict) else value


SLOT = SlotMarker()
MODEL_SLOT = SlotMarker("gpt", short=False)

LARGEST_WHOLE_NUMBER = 2**63 - 1  # what TOML promises to carry

Positive = Annotated[int, Field(gt=0, le=LARGEST_WHOLE_NUMBER)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST_WHOLE_NUMBER)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]

Switch = Annotated[bool, Field(exclude_if=lambda on: not on)]
"""A switch that is off by default. Off is not written out, so runs from before there was one keep their identity."""


def can_be_none(annotation: Any) -> bool:
    """Whether ``"none"`` may stand for nothing in a field: it may be None, and ``"none"`` is no text of its own."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return type(None) in members and str not in members


def tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables and slots that a field's annotation names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from tables_in(inner)
