"""Numbers and instants as pages show them; unknown values are a dash."""

from collections.abc import Callable
from typing import Any

from fromscratch.files import readable_bytes, readable_dollars, readable_seconds

DASH = "\N{EN DASH}"


def number(value: Any, form: str = ",") -> str:
    """Formats a number by a format specification."""
    return DASH if value is None else f"{value:{form}}"


def duration(seconds: float | None) -> str:
    """Formats seconds."""
    return DASH if seconds is None else readable_seconds(seconds)


def size(num_bytes: int | None) -> str:
    """Formats a size."""
    return DASH if num_bytes is None else readable_bytes(num_bytes)


def dollars(amount: float | None) -> str:
    """Formats dollars."""
    return DASH if amount is None else readable_dollars(amount)


def setting(value: Any) -> str:
    """Formats a value of a run file."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key} = {setting(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "duration": duration,
    "size": size,
    "dollars": dollars,
    "setting": setting,
}
