"""What training, evaluation and generation ask of a model, whatever its kind. Needs torch alone.

Letters: B batch, T time, V vocabulary.
"""

from typing import NamedTuple

from torch import Tensor, nn

from .cache import Past
from .mechanism import Init


class TrainingLosses(NamedTuple):
    """What a training step minimises and reports."""

    losses: Tensor
    """Cross-entropy in nats of every target, fp32."""
    auxiliary: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)
    """Auxiliary losses by name, 0-d: sums over the same targets; that of a sequence counts once for each target."""
    penalty: Tensor | float = 0.0
    """The sum of the auxiliary losses times their coefficients. Training minimises ``losses.sum() + penalty``."""


class LanguageModel(nn.Module):
    """Predicts the next token. A kind of model is a subclass and a config class that builds it."""

    vocab_size: int
    """Number of token ids, V."""
    context_length: int
    """Number of tokens in a training sequence."""
    num_layers: int
    num_classes: int | None = None
    """Number of classes that the head scores instead of tokens; None in a language model."""
    is_encoder = False
    """Whether it reads a text in both directions, so that it can classify, and cannot predict the next token."""
    has_unlimited_context = False
    """Whether a text may grow beyond ``context_length``, as it may in a recurrent model."""
    gradient_checkpointing: bool | None = None
    """Whether backward recomputes activations instead of keeping them; None where a kind cannot.
    transformers sets an attribute of this name in published models."""

    document_end: int | None = None
    """The token id that ends a document. In ``losses`` and its relatives, attention then stays within a document; a
    kind whose config says ``can_separate_documents`` obeys it. None does not separate documents. ``forward``, and so
    generation, never does."""

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Scores of the next token at every position: ids [B, T] -> logits [B, T, V]."""
        raise NotImplementedError

    def next_logits(self, tokens: Tensor, past: Past) -> Tensor:
        """Scores of the next token after the last position: ids [B, T] -> logits [B, V]."""
        return self(tokens, past)[:, -1]

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target: ids [B, T] and [B, T] -> fp32 [B, T]."""
        raise NotImplementedError

    def losses_of(self, tokens: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """As ``losses``, of the N targets alone where the booleans ``counts`` [B, T] are true: fp32 [N]."""
        return self.losses(tokens, targets.clamp(min=0))[counts]

    def training_losses(self, tokens: Tensor, targets: Tensor, counts: Tensor | None = None) -> TrainingLosses:
        """As ``losses``, or ``losses_of`` where ``counts`` is given, with the model's auxiliary losses in training."""
        return TrainingLosses(
            self.losses(tokens, targets) if counts is None else self.losses_of(tokens, targets, counts)
        )

    def initial_carry(self, num_sequences: int) -> dict[str, Tensor]:
        """State before the first batch, one row per sequence; empty where batches are independent."""
        return {}

    def losses_and_carry(
        self, tokens: Tensor, targets: Tensor, carry: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As ``losses``, for sequences that continue those of the batch before; also returns the new carry."""
        return self.losses(tokens, targets), carry

    def new_past(self, capacity: int) -> Past:
        """An empty memory for up to ``capacity`` columns of text."""
        raise NotImplementedError

    def reset(self, init: Init) -> None:
        """Sets every parameter and buffer."""
        raise NotImplementedError

    def scores_of(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Scores where the booleans ``counts`` [B, T] are true, N times: ids [B, T] -> [N, V]."""
        return self(tokens)[counts]

    @property
    def output_head(self) -> nn.Module:
        """What scores the predictions; a linear layer in every language model."""
        raise NotImplementedError

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the output head, by name. They must not be tied to others."""
        own = set(self.output_head.parameters())
        return {name: parameter for name, parameter in self.named_parameters() if parameter in own}

    def last_layer(self) -> nn.Module:
        """The linear layer that gives the scores."""
        return self.output_head

    def replace_head(self, num_outputs: int) -> None:
        """Makes ``forward`` and ``losses_of`` score so many classes instead of tokens, by an own head, not set yet."""
        raise NotImplementedError

    def untie_head(self) -> None:
        """Gives a tied head a matrix of its own, with the same values; every other parameter stays the same object."""
        raise NotImplementedError

    def tie_parameters(self) -> None:
        """Makes modules share the parameters that they share; called again after ``to_empty``, which separates them."""
