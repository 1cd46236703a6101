"""``[model] kind = "lstm"``, ``"gru"`` and ``"rnn"``: recurrent networks that read a text byte by byte."""

from typing import Annotated, Any, ClassVar, Literal

from fromscratch.config.base import Positive, Probability, SlotMarker
from fromscratch.config.model import GPT2Init, ModelConfig, TorchInit

RECURRENT_PRESETS: dict[str, dict[str, Any]] = {
    "min-char-rnn": {"num_layers": 1, "hidden_dim": 100, "context_length": 25},
    "char-rnn": {"num_layers": 2, "hidden_dim": 128, "context_length": 50},
    "char-rnn-512": {"num_layers": 3, "hidden_dim": 512, "context_length": 100},
}
"""Karpathy's shapes: min-char-rnn.py, char-rnn's defaults, and the models of "The Unreasonable Effectiveness of
Recurrent Neural Networks" (2015)."""


class RecurrentConfig(ModelConfig):
    """What the recurrent kinds have in common."""

    builds: ClassVar[str] = "fromscratch.models.factory:build_recurrent"
    free_settings: ClassVar[frozenset[str]] = ModelConfig.free_settings | {"context_length", "implementation"}
    presets: ClassVar[dict[str, dict[str, Any]]] = RECURRENT_PRESETS
    reads_lanes: ClassVar[bool] = True
    preset: Literal[tuple(RECURRENT_PRESETS)] | None = None  # type: ignore[valid-type]
    """A named shape. Fields that the file gives override it."""
    context_length: Positive = 100
    """Tokens through which gradients flow back. The state continues beyond, and texts may have any length."""
    num_layers: Positive = 2
    hidden_dim: Positive = 128
    """Width of every layer and of its state."""
    embedding_dim: Positive | None = None
    """Width of the token embedding. Left out: tokens enter as one-hot vectors."""
    dropout: Probability = 0.0
    """Share of a layer's outputs dropped in training, after every layer, the last one included; 0 is off."""
    implementation: Literal["torch", "explicit"] = "torch"
    """torch's layers, or the same in explicit steps, for readers."""
    init: Annotated[TorchInit | GPT2Init, SlotMarker("torch")] = TorchInit()


class LSTMConfig(RecurrentConfig):
    """Long short-term memory (Hochreiter and Schmidhuber 1997): a cell that gates write, clear and read."""

    kind: Literal["lstm"] = "lstm"


class GRUConfig(RecurrentConfig):
    """Gated recurrent units (Cho et al. 2014): two gates and no separate cell."""

    kind: Literal["gru"] = "gru"


class RNNConfig(RecurrentConfig):
    """The plain recurrent network (Elman 1990): the new state is the tanh of a linear map of input and old state."""

    kind: Literal["rnn"] = "rnn"
