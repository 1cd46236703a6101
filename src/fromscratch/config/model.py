"""``[model]``: the architecture. Defaults are GPT-2 as OpenAI released it."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fromscratch.config.base import SLOT, NonNegative, Positive, Probability, Slot, SlotMarker, Table
from fromscratch.config.presets import PRESETS


class LayerNorm(Slot):
    """Zero mean, unit variance, then scale and shift (Ba et al. 2016)."""

    builds: ClassVar[str] = "fromscratch.models.layers:LayerNorm"
    kind: Literal["layernorm"] = "layernorm"
    eps: float = Field(default=1e-5, gt=0.0)
    """Added to the variance."""


class RMSNorm(Slot):
    """Divides by the root of the mean square; no mean is subtracted (Zhang and Sennrich 2019)."""

    builds: ClassVar[str] = "fromscratch.models.layers:RMSNorm"
    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the mean square."""
    scale: bool = True
    """Whether each element has a trained weight."""


class LearnedPosition(Slot):
    """A trained vector per position, added to the token embedding."""

    builds: ClassVar[str] = "fromscratch.models.layers:LearnedPosition"
    kind: Literal["learned"] = "learned"


class NoPosition(Slot):
    """No encoding; the causal mask alone tells positions apart (Haviv et al. 2022)."""

    builds: ClassVar[str] = "fromscratch.models.positions:NoPosition"
    kind: Literal["none"] = "none"


class RotaryPosition(Slot):
    """Queries and keys turned by angles that grow with the position (Su et al. 2021, RoPE).

    ``scaling`` extends a trained model: set ``context_length`` to the new length, and ``trained_context``.
    """

    builds: ClassVar[str] = "fromscratch.models.positions:RotaryPosition"
    free_settings: ClassVar[frozenset[str]] = frozenset({"scaling", "factor", "trained_context"})
    kind: Literal["rope"] = "rope"
    theta: float = Field(default=10_000.0, gt=1.0)
    """Base of the angles' frequencies."""
    scaling: Literal["linear", "ntk", "yarn", "llama3"] | None = None
    """Position interpolation (Chen et al. 2023), NTK-aware (bloc97 2023), YaRN (Peng et al. 2023) or Llama 3's (Meta
    2024)."""
    factor: float | None = Field(default=None, ge=1.0)
    """How many times longer texts may be. Default: ``context_length`` divided by ``trained_context``."""
    trained_context: Positive | None = None
    """Context length that the weights were trained at. Default: the model's."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.scaling is None and (self.factor is not None or self.trained_context is not None):
            raise ValueError('factor and trained_context need scaling = "linear", "ntk", "yarn" or "llama3"')
        if self.scaling is not None and self.factor is None and self.trained_context is None:
            raise ValueError(f'scaling = "{self.scaling}" needs factor, or trained_context')
        return self


class AlibiPosition(Slot):
    """A score falls in proportion to the distance, at a slope of each head's own (Press et al. 2022, ALiBi)."""

    builds: ClassVar[str] = "fromscratch.models.positions:AlibiPosition"
    kind: Literal["alibi"] = "alibi"


class AttentionSettings(Slot):
    """What every attention has."""

    key_value_heads: Positive | None = None
    """Heads of keys and values, each for several heads of queries (Ainslie et al. 2023, GQA; 1 is multi-query).
    Must divide ``num_heads``. Default: ``num_heads``."""
    window: NonNegative | Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=1)] | None = None
    """Tokens that a position sees, itself included; a list is used by layer in turn; 0 or none is all."""
    query_key_norm: Literal["scaled", "plain"] | None = None
    """RMSNorm of each head's queries and keys, with or without weights (Dehghani et al. 2023). Default: none."""
    output_bias: bool | None = None
    """Whether the output projection has a bias. Default: yes."""
    value_embeddings: bool | None = None
    """Whether every other layer adds a trained vector of each token to its values (nanochat). Default: no."""


class FusedAttention(AttentionSettings):
    """Multi-head attention through torch's fused kernels; never holds the score matrix."""

    builds: ClassVar[str] = "fromscratch.models.attention:FusedAttention"
    weights: ClassVar[str] = "multi-head"
    kind: Literal["sdpa"] = "sdpa"


class ExplicitAttention(AttentionSettings):
    """Multi-head attention in explicit steps: scores, mask, softmax. For readers; fast for short contexts on CPUs."""

    builds: ClassVar[str] = "fromscratch.models.attention:ExplicitAttention"
    weights: ClassVar[str] = "multi-head"
    kind: Literal["explicit"] = "explicit"
    score_cap: float | None = Field(default=None, gt=0.0)
    """Caps each score smoothly, by ``cap tanh(score / cap)`` (Gemma Team 2024). Default: no cap."""

    def weight_settings(self) -> dict[str, Any]:
        """Without a cap, the same as fused attention."""
        settings = super().weight_settings()
        return settings if self.score_cap else {key: value for key, value in settings.items() if key != "score_cap"}


class GeluMLP(Slot):
    """Linear, GELU (tanh form), linear."""

    builds: ClassVar[str] = "fromscratch.models.layers:GeluMLP"
    kind: Literal["gelu-mlp"] = "gelu-mlp"
    ratio: Positive = 4
    """Width of the middle, in embedding widths."""


class ExactGeluMLP(Slot):
    """Linear, GELU (exact), linear: what nanoGPT trains."""

    builds: ClassVar[str] = "fromscratch.models.layers:ExactGeluMLP"
    kind: Literal["exact-gelu-mlp"] = "exact-gelu-mlp"
    ratio: Positive = 4
    """Width of the middle, in embedding widths."""


class GatedSettings(Slot):
    """What every network with a gate has."""

    hidden_dim: Positive | None = None
    """Width of the middle. Default: two thirds of four embedding widths, rounded up to a multiple of 64."""
    linear_bias: bool = False
    """Whether the linear layers have a bias."""


class SwiGLU(GatedSettings):
    """Linear with a gate activated by SiLU, then linear (Shazeer 2020): Llama, Qwen."""

    builds: ClassVar[str] = "fromscratch.models.feedforward:SwiGLU"
    kind: Literal["swiglu"] = "swiglu"


class GeGLU(GatedSettings):
    """Linear with a gate activated by GELU (tanh form), then linear (Shazeer 2020): Gemma."""

    builds: ClassVar[str] = "fromscratch.models.feedforward:GeGLU"
    kind: Literal["geglu"] = "geglu"


class SquaredReluMLP(Slot):
    """Linear, ReLU squared, linear (So et al. 2021, Primer): nanochat."""

    builds: ClassVar[str] = "fromscratch.models.feedforward:SquaredReluMLP"
    kind: Literal["relu-squared-mlp"] = "relu-squared-mlp"
    ratio: Positive = 4
    """Width of the middle, in embedding widths."""
    linear_bias: bool = False
    """Whether the linear layers have a bias."""


class MixtureOfExperts(Slot):
    """A router sends each token to a few of several SwiGLU networks (Jiang et al. 2024, Mixtral)."""

    builds: ClassVar[str] = "fromscratch.models.mixture:MixtureOfExperts"
    free_settings: ClassVar[frozenset[str]] = frozenset({"balance_loss", "router_z_loss", "capacity"})
    kind: Literal["mixture"] = "mixture"
    experts: Positive = 8
    """Number of networks."""
    active_experts: Positive = 2
    """Networks that each token uses; at most ``experts``."""
    hidden_dim: Positive | None = None
    """Width of the middle of each network. Default: that of ``swiglu``."""
    balance_loss: float = Field(default=0.01, ge=0.0)
    """Coefficient of the auxiliary loss that makes the router use all experts alike; 0 only measures it."""
    router_z_loss: float = Field(default=0.001, ge=0.0)
    """Coefficient of the auxiliary loss that keeps the router's scores small (Zoph et al. 2022); 0 only measures it."""
    capacity: float | None = Field(default=None, gt=0.0)
    """In training, an expert takes at most ``capacity`` times its even share of each sequence's tokens, the first
    ones, and skips the others. Default: no limit."""

    @model_validator(mode="after")
    def _are_there_so_many(self) -> Self:
        if self.active_experts > self.experts:
            raise ValueError(f"active_experts = {self.active_experts} is more than experts = {self.experts}; lower it")
        return self


class HeadSettings(Slot):
    """What every head has."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"z_loss"})
    logit_cap: float | None = Field(default=None, gt=0.0)
    """Caps each score smoothly, by ``cap tanh(score / cap)`` (Gemma Team 2024). Default: no cap."""
    z_loss: float | None = Field(default=None, gt=0.0)
    """Coefficient of an auxiliary loss, the squared logarithm of the softmax's denominator (Chowdhery et al. 2022).
    Default: off."""


class LinearHead(HeadSettings):
    """Computes the scores of all tokens at once."""

    builds: ClassVar[str] = "fromscratch.models.layers:LinearHead"
    weights: ClassVar[str] = "linear"
    kind: Literal["linear"] = "linear"


class ChunkedHead(HeadSettings):
    """The same scores and loss, computed a few tokens at a time. Never holds all logits in fp32."""

    builds: ClassVar[str] = "fromscratch.models.head:ChunkedHead"
    weights: ClassVar[str] = "linear"
    kind: Literal["chunked"] = "chunked"


class ScaledResidual(Slot):
    """Trained scalars of each layer: how much of the stream and of the normalised embedding enters it (nanochat)."""

    builds: ClassVar[str] = "fromscratch.models.residual:ScaledResidual"
    kind: Literal["scaled"] = "scaled"
    first_input: float = 0.1
    """Share of the embedding in an untrained model; that of the stream begins at 1."""


class ParallelBlocks(Slot):
    """In training, a further block for each token after the next one (Gloeckle et al. 2024)."""

    builds: ClassVar[str] = "fromscratch.models.multi_token:ParallelBlocks"
    free_settings: ClassVar[frozenset[str]] = frozenset({"coefficient"})
    kind: Literal["blocks"] = "blocks"
    tokens: Positive = 1
    """Number of tokens after the next one that each position predicts."""
    coefficient: float = Field(default=0.3, gt=0.0)
    """Weight of their mean cross-entropy in what training minimises."""


class GPT2Init(Slot):
    """Normal weights, residual projections scaled down by depth (Radford et al. 2019, 2.3)."""

    builds: ClassVar[str] = "fromscratch.models.initialisation:GPT2Init"
    kind: Literal["gpt2"] = "gpt2"
    std: float = Field(default=0.02, gt=0.0)
    """Standard deviation of embeddings and matrices."""


class TorchInit(Slot):
    """PyTorch's default initialisation, which introductory code uses."""

    builds: ClassVar[str] = "fromscratch.models.initialisation:TorchInit"
    kind: Literal["torch"] = "torch"


class ModelConfig(Table):
    """Base class of every kind of model. A kind is a subclass with its ``kind``, ``builds`` and an ``init`` slot."""

    builds: ClassVar[str]
    """Names what builds the model from its config (``package.module:function``); see ``models/language_model.py``."""
    free_settings: ClassVar[frozenset[str]] = frozenset({"preset", "dropout", "init"})
    """Settings on which neither the shape nor the meaning of a weight depends."""
    can_separate_documents: ClassVar[bool] = False
    """Whether ``data.document_mask`` has an effect."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Values of fields by the names that ``preset`` may have."""
    reads_lanes: ClassVar[bool] = False
    """Whether row b of successive batches continues the same text, as a recurrent model needs it."""
    kind: str
    preset: str | None = None
    """A named shape. Fields that the file gives override it."""
    vocab_size: Positive | None = None
    """Number of token ids. Default: that of the store's tokenizer."""
    context_length: Positive = 1024
    """Tokens in one sequence."""
    if TYPE_CHECKING:
        init: Slot = GPT2Init()

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("preset"), str) and values["preset"] in cls.presets:
            preset = cls.presets[values["preset"]]
            return {**preset, **{key: _over(preset.get(key), value) for key, value in values.items()}}
        return values

    def weight_settings(self) -> dict[str, Any]:
        """The settings that must agree for the weights of another model to fit, by key (``attention.kind``)."""
        found: dict[str, Any] = {}
        for name in type(self).model_fields.keys() - self.free_settings:
            value = getattr(self, name)
            inner = value.weight_settings() if isinstance(value, Slot) else {"": value}
            found |= {f"{name}.{key}".rstrip("."): setting for key, setting in inner.items()}
        return dict(sorted(found.items()))


def _over(preset: Any, value: Any) -> Any:
    """A value over a preset's: a table without a kind changes settings of the preset's kind."""
    if not isinstance(value, dict) or "kind" in value or not isinstance(preset, str | dict):
        return value
    return {**({"kind": preset} if isinstance(preset, str) else preset), **value}


class GPTConfig(ModelConfig):
    """A GPT. ``preset`` sets the shape; fields that the file gives override it."""

    builds: ClassVar[str] = "fromscratch.models.factory:build_gpt"
    free_settings: ClassVar[frozenset[str]] = ModelConfig.free_settings | {"residual_dtype"}
    can_separate_documents: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    kind: Literal["gpt"] = "gpt"
    preset: Literal[tuple(PRESETS)] | None = None  # type: ignore[valid-type]
    """A named shape. Fields that the file gives override it."""
    num_layers: Positive = 12
    num_heads: Positive = 12
    """Attention heads per layer; must divide embedding_dim, unless head_dim is set."""
    embedding_dim: Positive = 768
    """Width of the residual stream."""
    dropout: Probability = 0.1
    """Share of activations dropped in training, at embeddings, attention and residual additions; 0 is off."""
    attention_bias: bool = True
    """Whether the query, key and value projections have a bias."""
    tied_head: bool = True
    """Whether the output head shares the token embedding's matrix."""
    residual_dtype: Literal["bf16"] | None = None
    """Number format of the residual stream: ``bf16``, which moves less memory on a GPU; left out: fp32."""
    head_dim: Positive | None = None
    """Channels of each attention head (Qwen3 has more than its width gives). Default: embedding_dim / num_heads."""
    norm: Annotated[LayerNorm | RMSNorm, SlotMarker("layernorm")] = LayerNorm()
    position: Annotated[LearnedPosition | RotaryPosition | AlibiPosition | NoPosition, SlotMarker("learned")] = (
        LearnedPosition()
    )
    attention: Annotated[FusedAttention | ExplicitAttention, SLOT] = FusedAttention()
    feedforward: Annotated[GeluMLP | ExactGeluMLP | SwiGLU | GeGLU | SquaredReluMLP | MixtureOfExperts, SLOT] = (
        GeluMLP()
    )
    head: Annotated[LinearHead | ChunkedHead, SLOT] = ChunkedHead()
    init: Annotated[GPT2Init | TorchInit, SLOT] = GPT2Init()
    residual: Annotated[ScaledResidual, SLOT] | None = None
    """What enters each layer. Default: the stream as it is."""
    multi_token: Annotated[ParallelBlocks, SLOT] | None = None
    """Prediction of further tokens as an auxiliary loss. Default: off."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.head_dim is None and self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim = {self.embedding_dim} is not divisible by num_heads = {self.num_heads}; change either"
            )
        groups = getattr(self.attention, "key_value_heads", None) or self.num_heads
        if self.num_heads % groups:
            raise ValueError(
                f"attention.key_value_heads = {groups} does not divide num_heads = {self.num_heads}; change either"
            )
        if self.multi_token and self.multi_token.tokens >= self.context_length:
            raise ValueError(
                f"multi_token.tokens = {self.multi_token.tokens} must be below context_length = {self.context_length}; "
                "lower it"
            )
        position = self.position
        trained = getattr(position, "trained_context", None) or 0
        if trained >= self.context_length and getattr(position, "factor", None) is None:
            raise ValueError(
                f"position.trained_context = {trained} is not below context_length = {self.context_length}, so "
                "scaling changes nothing; remove it, or give position.factor"
            )
        if isinstance(position, RotaryPosition) and self.head_channels % 2:
            named = "embedding_dim / num_heads" if self.head_dim is None else "head_dim"
            raise ValueError(
                f"position.kind = 'rope' needs an even number of channels per head; {named} = {self.head_channels}; "
                "change it"
            )
        return self

    @property
    def head_channels(self) -> int:
        """Channels of each attention head."""
        return self.head_dim or self.embedding_dim // self.num_heads

    def weight_settings(self) -> dict[str, Any]:
        """Positions without a table of vectors let the context grow."""
        settings = super().weight_settings()
        if not isinstance(self.position, LearnedPosition):
            del settings["context_length"]
        return settings


class HuggingFaceConfig(ModelConfig):
    """A causal language model of the transformers library, to be tuned; its weights come from ``train.start_from``."""

    builds: ClassVar[str] = "fromscratch.models.huggingface:build"
    kind: Literal["huggingface"] = "huggingface"
    architecture: str = Field(min_length=2)
    """The content of its ``config.json``."""
