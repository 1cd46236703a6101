"""A second kind of model, for tests alone: a plain recurrent network that carries its hidden state."""

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fromscratch.config.base import SLOT, Positive
from fromscratch.config.model import GPT2Init, ModelConfig, TorchInit
from fromscratch.models.cache import Past
from fromscratch.models.language_model import LanguageModel
from fromscratch.models.mechanism import Init


class ToyRecurrentConfig(ModelConfig):
    """h' = tanh(W [x; h]), and a linear head."""

    builds: ClassVar[str] = "tests.models.toy_recurrent:build"
    kind: Literal["toy-recurrent"] = "toy-recurrent"
    hidden_dim: Positive = 16
    """Width of embedding and hidden state."""
    init: Annotated[GPT2Init | TorchInit, SLOT] = GPT2Init(std=0.1)


class HiddenState(Past):
    """The memory of a text: the hidden state after its last token."""

    def __init__(self) -> None:
        self.hidden: Tensor | None = None
        self._padding: Tensor | None = None

    def begin(self, padding: list[int], device: torch.device) -> None:
        self.length, self.hidden = 0, None
        self._padding = torch.tensor(padding, device=device)[:, None]

    def all_positions(self, num_columns: int) -> Tensor:
        assert self._padding is not None
        return torch.arange(num_columns, device=self._padding.device)[None] - self._padding


class ToyRecurrent(LanguageModel):
    """Ids in, scores out, a hidden state [B, H] from token to token."""

    has_unlimited_context = True

    def __init__(self, config: ToyRecurrentConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.vocab_size, self.context_length, self.num_layers = config.vocab_size, config.context_length, 1
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.cell = nn.Linear(2 * config.hidden_dim, config.hidden_dim)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size)

    def reset(self, init: Init) -> None:
        init.embedding(self.embedding.weight)
        init.linear(self.cell)
        init.linear(self.head)

    def initial_carry(self, num_sequences: int) -> dict[str, Tensor]:
        return {"hidden": self.embedding.weight.new_zeros(num_sequences, self.cell.out_features)}

    def _run(self, tokens: Tensor, hidden: Tensor, is_text: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = []
        for index, x in enumerate(self.embedding(tokens).unbind(1)):
            new = torch.tanh(self.cell(torch.cat([x, hidden], dim=-1)))
            hidden = new if is_text is None else torch.where(is_text[:, index, None], new, hidden)
            outputs.append(self.head(hidden))
        return torch.stack(outputs, dim=1), hidden

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        zeros = self.initial_carry(len(tokens))["hidden"]
        if past is None:
            return self._run(tokens, zeros)[0]
        assert isinstance(past, HiddenState)
        is_text = (past.positions(tokens.shape[1]) >= 0).expand(tokens.shape)
        logits, past.hidden = self._run(tokens, zeros if past.hidden is None else past.hidden, is_text)
        past.advance(tokens.shape[1])
        return logits

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.losses_and_carry(tokens, targets, self.initial_carry(len(tokens)))[0]

    def losses_and_carry(
        self, tokens: Tensor, targets: Tensor, carry: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, hidden = self._run(tokens, carry["hidden"])
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view(targets.shape), {"hidden": hidden}

    def new_past(self, capacity: int) -> Past:
        return HiddenState()


def build(config: ToyRecurrentConfig) -> ToyRecurrent:
    """Builds the model from its config."""
    return ToyRecurrent(config)
