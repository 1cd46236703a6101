"""Which models of ours an architecture of transformers computes too, and our own table in its ``config.json``."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fromscratch.config.model import GPTConfig
from fromscratch.config.run import parse_model
from fromscratch.errors import UsageError
from fromscratch.formats.published import TABLE_KEY

DIFFERING_TABLE = f"{TABLE_KEY} in config.json is not used, because the weights or other keys have changed since"


def other_kind(config: GPTConfig, kinds: dict[str, tuple[str, ...]]) -> str:
    """Returns the first slot filled by none of the kinds, as ``slot = kind``; an empty text if there is none."""
    for slot, known in kinds.items():
        if getattr(config, slot).weight_settings()["kind"] not in known:
            return f"{slot} = {getattr(config, slot).kind}"
    return ""


def beyond_native(config: GPTConfig) -> str:
    """Returns the first setting that none of the architectures has; an empty text if there is none."""
    attention = first_set(config, "attention", "score_cap", "value_embeddings")
    filled = (f"{name} = {slot.kind}" for name in ("residual", "multi_token") if (slot := getattr(config, name)))
    return attention or first_set(config, "head", "logit_cap") or next(filled, "")


def first_set(config: GPTConfig, slot: str, *names: str) -> str:
    """Returns the first of a slot's settings that is given, as ``slot.name = value``; an empty text if none is."""
    settings = getattr(config, slot).weight_settings()
    found = (f"{slot}.{name} = {settings[name]}" for name in names if settings.get(name) is not None)
    return next(found, "")


def table_in(raw: dict[str, Any]) -> GPTConfig | None:
    """Returns the ``[model]`` table that ``publish`` left in a ``config.json``; None if there is none to be read."""
    if not isinstance(raw.get(TABLE_KEY), dict):
        return None
    try:
        config = parse_model(raw[TABLE_KEY])
    except ValidationError:
        return None
    return config if isinstance(config, GPTConfig) else None


def check_not_quantised(raw: dict[str, Any], where: Path) -> None:
    """Raises UsageError where a ``config.json`` says that the weights are quantised."""
    if raw.get("quantization_config"):
        raise UsageError(f"{where}: the weights are quantised (quantization_config); save them in 16 or 32 bits first")
