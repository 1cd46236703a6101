"""Rotary positions in the ``config.json`` of transformers: ``rope_parameters``, and ``rope_scaling`` in older files."""

from typing import Any

from fromscratch.config.model import GPTConfig, RotaryPosition
from fromscratch.models.positions import LLAMA3_TURNS, YARN_TURNS, yarn_scale

Keys = dict[str, Any]
PLAIN, DYNAMIC = "default", "dynamic"
ROPE_TYPES = (PLAIN, "linear", DYNAMIC, "yarn", "llama3")
"""Those that can be read."""
TRAINED = "original_max_position_embeddings"
LLAMA3_KEYS = dict(zip(("low_freq_factor", "high_freq_factor"), LLAMA3_TURNS, strict=True))


def rope_keys(config: GPTConfig) -> Keys:
    """Returns the keys of our positions; transformers has none for ``scaling = "ntk"``."""
    position = config.position
    assert isinstance(position, RotaryPosition)
    keys: Keys = {"rope_type": position.scaling or PLAIN, "rope_theta": position.theta}
    if position.scaling is None:
        return keys
    trained = position.trained_context or config.context_length
    keys["factor"] = factor = position.factor or max(1.0, config.context_length / trained)
    if position.scaling == "yarn":
        keys |= {TRAINED: trained} | _yarn_keys(factor)
    if position.scaling == "llama3":
        keys |= {TRAINED: trained} | LLAMA3_KEYS
    return keys


def their_rope_keys(raw: Keys, theta: float, context_length: int) -> Keys:
    """Returns the keys of a ``config.json`` as transformers understands them, in the form of ``rope_keys``.

    Args:
        theta: the base of the frequencies where no key names one.
    """
    found = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = found.get("rope_type") or found.get("type") or PLAIN
    keys = {key: value for key, value in found.items() if value is not None and key != "type"}
    keys = {"rope_type": kind} | keys
    keys.setdefault("rope_theta", raw.get("rope_theta") or theta)
    keys.setdefault("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if keys["partial_rotary_factor"] in (None, 1):
        del keys["partial_rotary_factor"]
    if kind == DYNAMIC:  # changes nothing up to the length of the context
        keys = {**keys, "rope_type": PLAIN}
        keys.pop("factor", None)
        if keys.get(TRAINED) == context_length:
            del keys[TRAINED]
    if kind in ("yarn", "llama3"):
        keys[TRAINED] = raw.get(TRAINED) or keys.get(TRAINED) or context_length
    if kind == "yarn":
        keys.setdefault("factor", context_length / keys[TRAINED])
        if not (keys.get("mscale") and keys.get("mscale_all_dim")):  # either alone means nothing
            keys = {key: value for key, value in keys.items() if not key.startswith("mscale")}
        keys = _yarn_keys(max(1.0, keys["factor"])) | keys
    return keys


def position_of(keys: Keys, context_length: int) -> Keys:
    """Returns the slot ``position`` for keys in the form of ``rope_keys``, whose type we may not have."""
    scaling = keys["rope_type"]
    slot: Keys = {"kind": "rope", "theta": keys["rope_theta"]}
    if scaling not in ("linear", "yarn", "llama3"):
        return slot
    factor, trained = keys.get("factor"), keys.get(TRAINED, context_length)
    if trained != context_length:
        slot["trained_context"] = trained
    if trained >= context_length or factor != context_length / trained:
        slot["factor"] = factor
    return slot | {"scaling": scaling}


def _yarn_keys(factor: float) -> Keys:
    least, most = YARN_TURNS
    return {"attention_factor": yarn_scale(factor), "beta_fast": most, "beta_slow": least, "truncate": True}
