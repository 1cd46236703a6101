"""Kinds of slots that exist in a test alone, registered as a contributor would: one more member of the union."""

from collections.abc import Iterator
from contextlib import contextmanager

from fromscratch.config.base import Slot, SlotMarker, Table
from fromscratch.config.model import GPTConfig
from fromscratch.config.run import RunConfig
from fromscratch.config.train import TrainConfig


@contextmanager
def registered(table: type[Table], slot: str, kind: type[Table]) -> Iterator[None]:
    """Inside of the block, ``kind`` is a member of the slot's union, in run files too."""
    field = table.model_fields[slot]
    before = field.annotation
    field.annotation = before | kind  # type: ignore[assignment]
    _rebuild()
    try:
        yield
    finally:
        field.annotation = before
        _rebuild()


def _rebuild() -> None:
    for table in (GPTConfig, TrainConfig, RunConfig):
        slots = [field for field in table.model_fields.values() if isinstance(field.default, Slot)]
        assert all(any(isinstance(m, SlotMarker) for m in field.metadata) for field in slots)
        table.model_rebuild(force=True)
