"""Recurrent language models, top to bottom: LSTM, GRU and the plain RNN, as in char-rnn.

A token enters as a one-hot vector or through an embedding, passes through a stack of recurrent layers, and a linear
head scores every entry of the vocabulary. Each layer keeps a state from token to token. So a text may be read in
pieces: the state after one piece is that before the next. In training the pieces are the sequences of successive
batches, and gradients end at their borders (truncated backpropagation through time).

Layers are torch's, or the same written out, with the same parameters, for readers. Dropout follows every layer, the
last one included. Its masks are this package's own (``dropout.py``), so a resume draws the same ones.

Letters: B batch, T time, D inputs of a layer, H hidden, L layers, V vocabulary.

Sources: Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks", and its char-rnn; Elman 1990;
Hochreiter and Schmidhuber 1997; Cho et al. 2014; Zaremba et al. 2014 (dropout between layers). Needs torch alone.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Past
from .compiling import outside_compiled_code
from .dropout import Dropout, number_dropout_sites
from .language_model import LanguageModel
from .layers import LinearHead
from .mechanism import Init

State = tuple[Tensor, ...]
"""The state of one layer, [B, H] each: hidden, and in an LSTM also the cell."""


class ExplicitRNN(nn.Module):
    """The plain recurrent layer, h' = tanh(W x + U h + b), step by step. Called as torch's ``nn.RNN``.

    Elman 1990, "Finding Structure in Time". Parameters have torch's names, shapes and two biases.
    """

    num_gates: ClassVar[int] = 1

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        rows = self.num_gates * hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(rows))
        self.bias_hh_l0 = nn.Parameter(torch.empty(rows))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x [B, T, D] and a state of one or two [1, B, H] -> outputs [B, T, H] and the new state."""
        is_pair = isinstance(state, tuple)
        parts: State = tuple(part[0] for part in (state if is_pair else (state,)))
        outputs = []
        for x_now in x.unbind(1):
            parts = self.step(x_now, *parts)
            outputs.append(parts[0])
        new = tuple(part[None] for part in parts)
        return torch.stack(outputs, dim=1), new if is_pair else new[0]

    def from_input(self, x: Tensor) -> Tensor:
        """What the input adds to every gate: [B, D] -> [B, gates x H]."""
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0)

    def from_hidden(self, hidden: Tensor) -> Tensor:
        """What the hidden state adds to every gate: [B, H] -> [B, gates x H]."""
        return F.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)

    def step(self, x: Tensor, *state: Tensor) -> State:
        """One token: x [B, D] and the state before it -> the state after it."""
        (hidden,) = state
        return (torch.tanh(self.from_input(x) + self.from_hidden(hidden)),)


class ExplicitGRU(ExplicitRNN):
    """A gated recurrent unit, step by step (Cho et al. 2014, in the form of cuDNN and torch)."""

    num_gates = 3

    def step(self, x: Tensor, *state: Tensor) -> State:
        """``reset`` hides the old state from the candidate; ``keep`` mixes old state and candidate."""
        (hidden,) = state
        reset_x, keep_x, new_x = self.from_input(x).chunk(3, dim=-1)
        reset_h, keep_h, new_h = self.from_hidden(hidden).chunk(3, dim=-1)
        reset, keep = torch.sigmoid(reset_x + reset_h), torch.sigmoid(keep_x + keep_h)
        candidate = torch.tanh(new_x + reset * new_h)
        return (keep * hidden + (1 - keep) * candidate,)


class ExplicitLSTM(ExplicitRNN):
    """Long short-term memory, step by step (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000)."""

    num_gates = 4

    def step(self, x: Tensor, *state: Tensor) -> State:
        """The cell forgets a share, takes in a share of the candidate; the hidden state is what it lets out."""
        hidden, cell = state
        take, forget, candidate, let_out = (self.from_input(x) + self.from_hidden(hidden)).chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(candidate)
        return torch.sigmoid(let_out) * torch.tanh(cell), cell


LAYERS: dict[str, dict[str, type[nn.Module]]] = {
    "lstm": {"torch": nn.LSTM, "explicit": ExplicitLSTM},
    "gru": {"torch": nn.GRU, "explicit": ExplicitGRU},
    "rnn": {"torch": nn.RNN, "explicit": ExplicitRNN},
}
"""Classes of layers by kind and implementation."""


class RecurrentHead(LinearHead):
    """A linear head, for tokens with a bias, as char-rnn has it."""

    def __init__(self, hidden_dim: int, num_outputs: int, *, bias: bool = True) -> None:
        nn.Linear.__init__(self, hidden_dim, num_outputs, bias=bias)
        self.logit_cap = self.z_loss = None


class RecurrentState(Past):
    """The memory of generation: the state after the last token of each text."""

    def __init__(self) -> None:
        self.carry: dict[str, Tensor] | None = None
        self._padding: list[int] = []
        self._device: torch.device | None = None

    def begin(self, padding: list[int], device: torch.device) -> None:
        self.length, self.carry = 0, None
        self._padding, self._device = padding, device
        self.is_padded = any(padding)

    def all_positions(self, num_columns: int) -> Tensor:
        columns = torch.arange(num_columns, device=self._device)[None]
        return columns - torch.tensor(self._padding, device=self._device)[:, None]

    def padding_within(self, num_new: int) -> list[int]:
        """Of the next ``num_new`` columns of each text, how many are padding."""
        return [min(max(0, padding - self.length), num_new) for padding in self._padding]


class Recurrent(LanguageModel):
    """A stack of recurrent layers. ``dropout`` follows every layer.

    Args:
        layer: a class of ``LAYERS``.
        embedding_dim: width of the token embedding; None enters tokens as one-hot vectors.
    """

    has_unlimited_context = True

    def __init__(
        self,
        layer: type[nn.Module],
        *,
        vocab_size: int,
        context_length: int,
        num_layers: int,
        hidden_dim: int,
        embedding_dim: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.state_names = ("hidden", "cell") if issubclass(layer, (nn.LSTM, ExplicitLSTM)) else ("hidden",)
        settings = {"batch_first": True} if issubclass(layer, nn.RNNBase) else {}
        self.token_embedding = nn.Embedding(vocab_size, embedding_dim) if embedding_dim else None
        widths = [embedding_dim or vocab_size, *[hidden_dim] * num_layers]
        self.layers = nn.ModuleList(layer(width, hidden_dim, **settings) for width in widths[:-1])
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in self.layers)
        self.head = RecurrentHead(hidden_dim, vocab_size)
        number_dropout_sites(self)

    @property
    def output_head(self) -> nn.Module:
        """The linear layer that scores tokens."""
        return self.head

    @property
    def _parameter(self) -> Tensor:
        """A parameter that knows type and device: the head's where there is one, which belongs to no layer."""
        return list(self.parameters())[-1]

    def replace_head(self, num_outputs: int) -> None:
        """Puts a linear head without a bias in place of the language head."""
        self.head = RecurrentHead(self.hidden_dim, num_outputs, bias=False)

    def initial_carry(self, num_sequences: int) -> dict[str, Tensor]:
        """Zeros: [B, L, H] by name of the state."""
        shape = (num_sequences, self.num_layers, self.hidden_dim)
        return {name: self._parameter.new_zeros(shape) for name in self.state_names}

    def hidden_states(self, tokens: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Ids [B, T] and the state before them -> outputs of the last layer [B, T, H] and the state after them."""
        if self.token_embedding is None:
            x = F.one_hot(tokens, self.vocab_size).to(self._parameter.dtype)
        else:
            x = self.token_embedding(tokens)
        states = []
        for index, (layer, dropout) in enumerate(zip(self.layers, self.dropouts, strict=True)):
            x, state = self._run_layer(layer, x, tuple(carry[name][:, index] for name in self.state_names))
            states.append(state)
            x = dropout(x)
        new = [torch.stack(parts, dim=1) for parts in zip(*states, strict=True)]
        return x, {name: part.to(carry[name].dtype) for name, part in zip(self.state_names, new, strict=True)}

    @outside_compiled_code  # torch's kernels are not traced, and a written-out layer would be unrolled over time
    def _run_layer(self, layer: nn.Module, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x [B, T, D] and the state [B, H] each -> outputs [B, T, H] and the new state."""
        given = tuple(part[None].contiguous() for part in state)
        outputs, new = layer(x, given if len(given) > 1 else given[0])
        return outputs, tuple(part[0] for part in (new if len(given) > 1 else (new,)))

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Scores of the next token at every position: ids [B, T] -> logits [B, T, V]."""
        return self.head(self.read(tokens, past))

    def next_logits(self, tokens: Tensor, past: Past) -> Tensor:
        """Scores after the last position, without those of the others: ids [B, T] -> logits [B, V]."""
        return self.head(self.read(tokens, past)[:, -1])

    def read(self, tokens: Tensor, past: Past | None) -> Tensor:
        """Ids that continue the texts of ``past`` -> outputs of the last layer [B, T, H]; zeros in the padding."""
        if past is None:
            return self.hidden_states(tokens, self.initial_carry(len(tokens)))[0]
        assert isinstance(past, RecurrentState)
        time, carry = tokens.shape[1], past.carry or self.initial_carry(len(tokens))
        missing = past.padding_within(time)
        if any(missing):  # each text by itself, without its padding
            rows = []
            for row, begin in enumerate(missing):
                state = {name: part[row : row + 1] for name, part in carry.items()}
                x = self._parameter.new_zeros(1, 0, self.hidden_dim)
                if begin < time:
                    x, state = self.hidden_states(tokens[row : row + 1, begin:], state)
                rows.append((F.pad(x, (0, 0, begin, 0)), state))
            x = torch.cat([outputs for outputs, _ in rows])
            past.carry = {name: torch.cat([state[name] for _, state in rows]) for name in carry}
        else:
            x, past.carry = self.hidden_states(tokens, carry)
        past.advance(time)
        return x

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target, from the initial state: ids [B, T] and [B, T] -> fp32 [B, T]."""
        return self.losses_and_carry(tokens, targets, self.initial_carry(len(tokens)))[0]

    def losses_and_carry(
        self, tokens: Tensor, targets: Tensor, carry: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As ``losses``, from the state after the sequences of the batch before; also returns the new state."""
        x, carry = self.hidden_states(tokens, carry)
        return self.head.losses(x, targets), carry

    def new_past(self, capacity: int) -> Past:
        """The state, whose size does not depend on the length of the text."""
        return RecurrentState()

    def reset(self, init: Init) -> None:
        """Sets all parameters. As in torch, those of a layer depend on its hidden size alone."""
        if self.token_embedding is not None:
            init.embedding(self.token_embedding.weight)
        for layer in self.layers:
            for parameter in layer.parameters():
                set_parameter = init.matrix if parameter.dim() > 1 else init.bias
                set_parameter(parameter, fan_in=self.hidden_dim)
        self.head.reset(init)

    def forward_flops(self, context_length: int) -> float:
        """Matrix products per token: those of the layers and the head."""
        matrices = [p for module in (*self.layers, self.head) for p in module.parameters() if p.dim() > 1]
        return 2.0 * sum(math.prod(matrix.shape) for matrix in matrices)
