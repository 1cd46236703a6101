"""``config.json`` of Llama, Mistral, Qwen2, Qwen3 and Mixtral in transformers: written and read by one table.

``_values`` has every key that changes what these models compute, and its value for a model of ours. ``FAMILIES`` says
which keys a family has, what an absent one means, and what the architecture fixes. Writing chooses the family that
fits. Reading makes a model of ours, and refuses it where writing it would give a key another value.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fromscratch.config.model import GPTConfig, MixtureOfExperts, RMSNorm, RotaryPosition, SwiGLU
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.native_kinds import DIFFERING_TABLE, beyond_native, check_not_quantised, other_kind, table_in
from fromscratch.formats.published import TABLE_KEY
from fromscratch.formats.rope_keys import DYNAMIC, ROPE_TYPES, position_of, rope_keys, their_rope_keys
from fromscratch.models.attention import HEAD_NORM_EPS
from fromscratch.models.feedforward import default_gated_dim

Keys = dict[str, Any]
KINDS: dict[str, tuple[str, ...]] = {
    "norm": ("rmsnorm",),
    "position": ("rope",),
    "attention": ("multi-head",),
    "feedforward": ("swiglu", "mixture"),
    "head": ("linear",),
}
"""The kinds of each slot that these architectures compute too."""
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = "rope_parameters"
OUTPUT_BIAS, HEAD_NORM = "bias of o_proj", "q_norm"
"""What the architecture says, not a key."""
SETTINGS = {
    "attention_bias": "attention_bias",
    OUTPUT_BIAS: "attention.output_bias",
    "mlp_bias": "feedforward.linear_bias",
    HEAD_NORM: "attention.query_key_norm",
    "sliding_window": "attention.window",
    "layer_types": "attention.window",
    "num_local_experts": "feedforward.kind",
}
"""The settings of ours that decide about the family."""


class InexpressibleError(UsageError):
    """A model that transformers may compute, but the kind ``gpt`` does not."""


@dataclass(frozen=True)
class Family:
    """An architecture of transformers. Each item is a key, and what an absent one means."""

    own: Keys
    """Keys that not all families have, or whose absence means something else than in ``COMMON``."""
    fixed: Keys
    """What no key changes; ``SAME`` is the value of ``attention_bias``, or the same window in each layer."""
    theta: float = 10_000.0
    """The base of the rotary frequencies where no key names one."""

    @property
    def keys(self) -> Keys:
        """All keys that the family reads."""
        return COMMON | self.own


SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys that must be there."""
COMMON: Keys = dict.fromkeys((*SHAPE, "max_position_embeddings", "num_key_value_heads", "head_dim", ROPE))
COMMON |= {"hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_dropout": 0.0, "tie_word_embeddings": False}
SAME = object()
CAUSAL: Keys = {"is_causal": True, "use_bidirectional_attention": False}
EXPERTS: Keys = {"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001}
DENSE: Keys = CAUSAL | dict.fromkeys(EXPERTS) | {"router_jitter_noise": 0.0}
NO_BIAS: Keys = {"attention_bias": False, OUTPUT_BIAS: False, "mlp_bias": False, HEAD_NORM: None}
WINDOWS: Keys = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
FAMILIES: dict[str, Family] = {
    "Llama": Family(
        {"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        DENSE | {OUTPUT_BIAS: SAME, HEAD_NORM: None, "sliding_window": None, "layer_types": SAME},
    ),
    "Mistral": Family(
        {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
        DENSE | NO_BIAS | {"layer_types": SAME},
    ),
    "Qwen2": Family(
        {"max_position_embeddings": 32_768, "num_key_value_heads": 32} | WINDOWS,
        DENSE | NO_BIAS | {"attention_bias": True},
    ),
    "Qwen3": Family(
        {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}
        | WINDOWS,
        DENSE | {OUTPUT_BIAS: SAME, "mlp_bias": False, HEAD_NORM: "scaled"},
    ),
    "Mixtral": Family(
        {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": None}
        | EXPERTS
        | {"router_jitter_noise": 0.0},
        CAUSAL | NO_BIAS | {"layer_types": SAME},
        theta=1_000_000.0,
    ),
}
"""By the beginning of the names of their classes. What absent keys mean is that of transformers 5."""
MODEL_TYPES = {name.lower(): name for name in FAMILIES}
WITHOUT_EFFECT = {
    *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "pretraining_tp", "output_router_logits"),
    *("id2label", "label2id", "num_labels", "problem_type", "rope_theta", "rope_scaling", "partial_rotary_factor"),
    *("original_max_position_embeddings", "use_sliding_window", "max_window_layers", "quantization_config", TABLE_KEY),
}
"""Keys that change no logits, or that are read elsewhere."""


def not_llama(config: GPTConfig) -> str:
    """Returns the settings that keep a model from being one of the families; an empty text if one fits."""
    if reason := other_kind(config, KINDS) or beyond_native(config) or _unlike_all(config):
        return reason
    misfits = {name: _misfits(config, family) for name, family in FAMILIES.items()}
    closest = min(misfits, key=lambda name: len(misfits[name]))
    return f"{' and '.join(misfits[closest])}, unlike {closest}" if misfits[closest] else ""


def family_of(config: GPTConfig) -> str:
    """Returns the first family that fits; ``not_llama`` must be empty."""
    return next(name for name, family in FAMILIES.items() if not _misfits(config, family))


def llama_config(config: GPTConfig) -> Keys:
    """Returns the ``config.json`` of the family that fits; ``not_llama`` must be empty."""
    name = family_of(config)
    family, values = FAMILIES[name], _values(config)
    keys = {key: values[key] for key in family.keys if key in values}
    if "use_sliding_window" in family.keys:
        keys["use_sliding_window"] = bool(values["sliding_window"])
    keys["rope_theta"] = values[ROPE]["rope_theta"]
    if config.position.scaling is not None:  # type: ignore[union-attr]
        keys["rope_scaling"] = values[ROPE]  # for transformers before 5, and for other programs
    return {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower(), **keys, "dtype": "float32"}


def read_llama_config(raw: Keys, where: Path) -> tuple[GPTConfig, list[str]]:
    """Returns the model of a ``config.json`` and notes for the user.

    Raises:
        InexpressibleError: our models cannot compute what a key says.
        UsageError: the weights are quantised.
        DataError: a key is missing or malformed.
    """
    check_not_quantised(raw, where)
    name = MODEL_TYPES[raw["model_type"]]
    if missing := [key for key in SHAPE if raw.get(key) is None]:
        raise DataError(f"{where}: not a config of {name}: {', '.join(missing)} missing")
    try:
        theirs = _their_values(raw, FAMILIES[name])
        config = GPTConfig.model_validate(_table(theirs))
        difference = _difference(theirs, config, raw) or not_llama(config)
    except ValidationError as error:
        first = error.errors()[0]
        key, value = ".".join(map(str, first["loc"])), f" = {first['input']!r}" if first["loc"] else ""
        raise InexpressibleError(f"{where}: not a model of kind 'gpt' ({key}{value}: {first['msg']})") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{where}: not a config of {name} ({error!r})") from None
    if difference:
        raise InexpressibleError(f"{where}: {difference}")
    notes = _notes(raw, name)
    table = table_in(raw)
    if table is not None and not not_llama(table) and not _difference(theirs, table, raw):
        return table, notes
    if table is not None:
        notes.append(DIFFERING_TABLE)
    return config, notes


def _unlike_all(config: GPTConfig) -> str:
    norm, attention, network, position = config.norm, config.attention, config.feedforward, config.position
    assert isinstance(norm, RMSNorm) and isinstance(position, RotaryPosition)
    has_head_norm = attention.query_key_norm is not None
    wrong = {
        "norm.scale = false": not norm.scale,
        "norm.eps other than 1e-6 with attention.query_key_norm": has_head_norm and norm.eps != HEAD_NORM_EPS,
        "feedforward.active_experts = 1": isinstance(network, MixtureOfExperts) and network.active_experts == 1,
        "attention.window of several lengths": len({window for window in windows_of(config) if window}) > 1,
        'position.scaling = "ntk"': position.scaling == "ntk",
    }
    return next((reason for reason, is_so in wrong.items() if is_so), "")


def _misfits(config: GPTConfig, family: Family) -> list[str]:
    """The settings of ours that a family does not have."""
    values = _values(config)
    misfits = [key for key, value in _fixed(family, values).items() if values[key] != value]
    if "num_local_experts" in family.own and values["num_local_experts"] is None:
        misfits.append("num_local_experts")
    found: Keys = dict.fromkeys(SETTINGS[key] for key in misfits if key in SETTINGS)
    plain = config.model_dump(mode="json")
    for name in found:
        slot, _, setting = name.rpartition(".")
        value = plain[slot][setting] if slot else plain[setting]
        found[name] = True if value is None and name == SETTINGS[OUTPUT_BIAS] else value
    return [f"{name} = {json.dumps(value)}" for name, value in found.items()]


def _fixed(family: Family, values: Keys) -> Keys:
    fixed = dict(family.fixed)
    if fixed.get(OUTPUT_BIAS) is SAME:
        fixed[OUTPUT_BIAS] = values["attention_bias"]
    if fixed.get("layer_types") is SAME:
        fixed["layer_types"] = [SLIDING if values["sliding_window"] else FULL] * values["num_hidden_layers"]
    return fixed


def _values(config: GPTConfig) -> Keys:
    """Every key that changes what a model computes or how it trains, for a model of ours."""
    attention, network, windows = config.attention, config.feedforward, windows_of(config)
    assert isinstance(network, SwiGLU | MixtureOfExperts)
    experts: Keys = dict.fromkeys(EXPERTS)
    if isinstance(network, MixtureOfExperts):
        experts = {"num_local_experts": network.experts, "num_experts_per_tok": network.active_experts}
        experts["router_aux_loss_coef"] = network.balance_loss
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.embedding_dim,
        "intermediate_size": network.hidden_dim or default_gated_dim(config.embedding_dim),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": attention.key_value_heads or config.num_heads,
        "head_dim": config.head_channels,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm.eps,
        ROPE: rope_keys(config),
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.attention_bias,
        OUTPUT_BIAS: attention.output_bias is not False,
        "mlp_bias": getattr(network, "linear_bias", False),
        HEAD_NORM: attention.query_key_norm,
        "sliding_window": max(windows) or None,
        "layer_types": [SLIDING if window else FULL for window in windows],
        **experts,
        "router_jitter_noise": 0.0,
        **CAUSAL,
    }


def windows_of(config: GPTConfig) -> list[int]:
    """The window of each layer; 0 is none."""
    window = config.attention.window or 0
    windows = window if isinstance(window, tuple) else (window,)
    return [windows[layer % len(windows)] for layer in range(config.num_layers)]


def _their_values(raw: Keys, family: Family) -> Keys:
    """The keys of a ``config.json`` as transformers understands them, in the form of ``_values``."""
    theirs = {key: absent if _is_absent(raw, key) else raw[key] for key, absent in family.keys.items()}
    if theirs["num_key_value_heads"] is None:
        theirs["num_key_value_heads"] = theirs["num_attention_heads"]
    if theirs["head_dim"] is None:
        theirs["head_dim"] = theirs["hidden_size"] // theirs["num_attention_heads"]
    theirs[ROPE] = their_rope_keys(raw, family.theta, theirs["max_position_embeddings"])
    if "use_sliding_window" in family.own:
        theirs |= _their_windows(theirs)
        del theirs["use_sliding_window"], theirs["max_window_layers"]
    theirs.setdefault("sliding_window", None)
    return theirs | _fixed(family, theirs)


def _is_absent(raw: Keys, key: str) -> bool:
    """A null means an absent key, except where transformers gives it a meaning of its own."""
    return key not in raw or (raw[key] is None and key not in ("num_key_value_heads", "head_dim", "sliding_window"))


def _their_windows(theirs: Keys) -> Keys:
    """Which layers of a Qwen have a window."""
    window = theirs["sliding_window"] if theirs["use_sliding_window"] else None
    types = theirs["layer_types"]
    if types is None:
        first = theirs["num_hidden_layers"] if window is None else theirs["max_window_layers"]
        types = [SLIDING if layer >= first else FULL for layer in range(theirs["num_hidden_layers"])]
    return {"sliding_window": window if SLIDING in types else None, "layer_types": types}


def _table(theirs: Keys) -> Keys:
    """The ``[model]`` table that comes closest to their values."""
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    hidden_dim = theirs["intermediate_size"] if theirs["intermediate_size"] != default_gated_dim(width) else None
    network: Keys = {"kind": "swiglu", "linear_bias": theirs["mlp_bias"]}
    if theirs["num_local_experts"] is not None:
        network = {"kind": "mixture", "experts": theirs["num_local_experts"]}
        network |= {"active_experts": theirs["num_experts_per_tok"], "balance_loss": theirs["router_aux_loss_coef"]}
    groups = theirs["num_key_value_heads"]
    attention = {
        "kind": "sdpa",
        "key_value_heads": None if groups == heads else groups,
        "window": _window(theirs),
        "query_key_norm": theirs[HEAD_NORM],
        "output_bias": None if theirs[OUTPUT_BIAS] else False,
    }
    return {
        "vocab_size": theirs["vocab_size"],
        "context_length": theirs["max_position_embeddings"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": heads,
        "embedding_dim": width,
        "head_dim": None if theirs["head_dim"] * heads == width else theirs["head_dim"],
        "dropout": theirs["attention_dropout"],
        "attention_bias": theirs["attention_bias"],
        "tied_head": theirs["tie_word_embeddings"],
        "norm": {"kind": "rmsnorm", "eps": theirs["rms_norm_eps"]},
        "position": position_of(theirs[ROPE], theirs["max_position_embeddings"]),
        "attention": attention,
        "feedforward": network | {"hidden_dim": hidden_dim},
    }


def _window(theirs: Keys) -> Any:
    """The window of every layer, or the shortest list that gives each layer its own in turn."""
    windows = [theirs["sliding_window"] if kind == SLIDING else 0 for kind in theirs["layer_types"]]
    if not any(windows):
        return None
    period = next(n for n in range(1, len(windows) + 1) if all(w == windows[i % n] for i, w in enumerate(windows)))
    return windows[0] if period == 1 else tuple(windows[:period])


def _difference(theirs: Keys, config: GPTConfig, raw: Keys) -> str:
    """The first key that says something else than the model, with its value and the rule; empty if there is none."""
    if theirs[HEAD_NORM] and theirs["rms_norm_eps"] != HEAD_NORM_EPS:
        return _refusal("rms_norm_eps", theirs["rms_norm_eps"], f"{HEAD_NORM_EPS} beside norms of queries and keys")
    if theirs["num_experts_per_tok"] == 1:  # theirs weighs the one expert by 1
        return _refusal("num_experts_per_tok", 1, "2 or more")
    rope = "rope_scaling" if raw.get("rope_scaling") else ROPE
    ours, wanted = _flat(_values(config), rope), _flat(theirs, rope)
    for key in wanted | ours:
        if not _is_same(wanted.get(key), ours.get(key)):
            return _refusal(key, wanted.get(key), _rule(key, ours.get(key)))
    fixed = FAMILIES[MODEL_TYPES[raw["model_type"]]].fixed
    if raw.get("use_sliding_window") is False:
        fixed = {key: value for key, value in fixed.items() if key != "sliding_window"}
    for key in fixed:  # transformers ignores such a key, other programs may not
        if raw.get(key) is not None and not _is_same(raw[key], ours[key]):
            return _refusal(key, raw[key], _rule(key, ours[key]))
    return ""


def _flat(values: Keys, rope: str) -> Keys:
    inner = {f"{rope}.{name}": value for name, value in values[ROPE].items()}
    return {key: value for key, value in values.items() if key != ROPE} | inner


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _refusal(key: str, value: Any, rule: str) -> str:
    return f"{key} = {json.dumps(value)}: only {rule} can be read as a model of kind 'gpt'"


def _rule(key: str, ours: Any) -> str:
    if key.endswith(".rope_type"):
        return ", ".join(ROPE_TYPES)
    return "a config without it" if ours is None else json.dumps(ours)


def _notes(raw: Keys, name: str) -> list[str]:
    family, notes = FAMILIES[name], []
    if unread := sorted(raw.keys() - family.keys.keys() - family.fixed.keys() - WITHOUT_EFFECT):
        notes.append(f"keys of config.json that transformers' {name} does not use are left out: {', '.join(unread)}")
    rope = raw.get("rope_scaling") or raw.get(ROPE) or {}
    if DYNAMIC in (rope.get("rope_type"), rope.get("type")):
        notes.append("positions are stretched only beyond the context (rope_type dynamic), which ends here")
    if raw.get("attention_dropout"):
        notes.append(
            f"attention_dropout = {raw['attention_dropout']} is the model's dropout, which further training here also "
            "applies to embeddings and residual additions"
        )
    return notes
