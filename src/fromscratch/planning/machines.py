"""Machines and their prices: those that ship (``machines.toml``) and the user's own."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from fromscratch.config.base import Positive, Table
from fromscratch.config.loading import merge, read_toml
from fromscratch.config.problems import error_messages, suggestion
from fromscratch.errors import UsageError

SHIPPED = "machines.toml"


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else tuple(value) if isinstance(value, list) else value


Price = Annotated[float, Field(ge=0.0)]
PriceRange = Annotated[tuple[Price, Price], BeforeValidator(_as_range)]


class Machine(Table):
    """A machine that one may rent or own."""

    device: str = Field(min_length=1)
    """Words of the device's name, as torch reports it (``A100``), or ``cpu``."""
    devices: Positive = 1
    memory_gb: float | None = Field(default=None, gt=0.0)
    """Memory of one device, in 10^9 bytes."""
    dollars_per_hour: PriceRange | None = None
    """Lowest and highest price of the whole machine."""
    watts: float | None = Field(default=None, gt=0.0)
    """Power of the whole machine in training."""
    dollars_per_kwh: float | None = Field(default=None, ge=0.0)
    date: str = ""
    """When the price was seen."""
    source: str = ""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if (self.watts is None) != (self.dollars_per_kwh is None):
            raise ValueError("watts and dollars_per_kwh belong together; give both or neither")
        if self.watts is not None and self.dollars_per_hour is not None:
            raise ValueError("give dollars_per_hour, or watts and dollars_per_kwh, not both")
        if self.dollars_per_hour is not None and self.dollars_per_hour[0] > self.dollars_per_hour[1]:
            raise ValueError("dollars_per_hour: the first price must not be above the second")
        return self

    @property
    def price_range(self) -> tuple[float, float] | None:
        """Lowest and highest dollars per hour; None if the price is unknown."""
        if self.watts is not None and self.dollars_per_kwh is not None:
            return (self.watts / 1000 * self.dollars_per_kwh,) * 2
        return self.dollars_per_hour


def user_file() -> Path:
    """Returns the path of the user's own machines: in ``$XDG_CONFIG_HOME``, by default ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "fromscratch" / SHIPPED


def read_machines() -> dict[str, Machine]:
    """Returns all machines by name; keys of the user's file replace those of the file that ships.

    Raises:
        UsageError: the user's file is not valid.
    """
    values, own = read_toml(Path(str(files(__package__) / SHIPPED))), user_file()
    if own.is_file():
        values = merge(values, read_toml(own))
    tables, unknown = values.get("machines"), sorted(values.keys() - {"machines"})
    if unknown or not isinstance(tables, dict):
        raise UsageError(f"{own}: {unknown[0] if unknown else 'machines'}: must be tables like [machines.NAME]")
    return {name: _parse(name, table, own) for name, table in tables.items()}


def _parse(name: str, table: Any, file: Path) -> Machine:
    try:
        return Machine.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{file}: machines.{name}: {'; '.join(error_messages(error, Machine))}") from None


def find_machines(names: list[str] | None) -> dict[str, Machine]:
    """Returns the machines of the names, or all without names. Raises UsageError for an unknown name."""
    known = read_machines()
    for name in names or []:
        if name not in known:
            raise UsageError(
                f"machine {name!r}: no such machine{suggestion(name, sorted(known))}; known are "
                f"{', '.join(known)}; {user_file()} may add others"
            )
    return {name: known[name] for name in names} if names else known
