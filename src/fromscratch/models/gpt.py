"""GPT-2, top to bottom.

Token and position embeddings, a stack of pre-norm blocks (attention, then a feed-forward network,
each added to the residual stream), a final norm, and a head that scores every entry of the
vocabulary. What varies between experiments is handed in as makers of modules: the *slots* ``position``,
``attention``, ``feedforward``, ``norm`` and ``head``, see ``mechanism.py``.

Letters: B batch, T time, D embedding, V vocabulary.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Vaswani et al.
2017. This file and those it imports need torch alone.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .cache import KeyValueCache, Past
from .dropout import Dropout, number_dropout_sites
from .flex import visible_blocks
from .language_model import LanguageModel, TrainingLosses
from .layers import LinearHead
from .mechanism import Auxiliaries, Init, Sizes, Slots, mean_over_layers

NO_CONTEXT: dict[str, Any] = {}
RESIDUAL_DTYPES = {"bf16": torch.bfloat16}


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, sizes: Sizes, layer: int, slots: Slots) -> None:
        super().__init__()
        self.residual_dtype = sizes.residual_dtype
        self.attention_norm = slots.norm(sizes, layer)
        self.attention = slots.attention(sizes, layer)
        self.attention_dropout = Dropout(sizes.dropout)
        self.feedforward_norm = slots.norm(sizes, layer)
        self.feedforward = slots.feedforward(sizes, layer)
        self.feedforward_dropout = Dropout(sizes.dropout)

    def forward(
        self, x: Tensor, positions: Tensor, past: Past | None = None, context: dict[str, Any] = NO_CONTEXT
    ) -> tuple[Tensor, Auxiliaries]:
        """[B, T, D] and [B or 1, T] -> [B, T, D], and in training the layer's auxiliary losses.

        ``context`` is what attention needs beside them, by keyword; see ``GPT.context_of``.
        """
        branch = self.attention_dropout(self.attention(self.attention_norm(self.widen(x)), positions, past, **context))
        x = x + branch.to(x.dtype)
        branch, auxiliary = self.feed(self.feedforward_norm(self.widen(x)))
        return x + self.feedforward_dropout(branch).to(x.dtype), auxiliary

    def feed(self, x: Tensor) -> tuple[Tensor, Auxiliaries]:
        """The feed-forward network, with its auxiliary losses where it has some."""
        if self.training and hasattr(self.feedforward, "forward_with_auxiliary"):
            return self.feedforward.forward_with_auxiliary(x)  # type: ignore[operator]
        return self.feedforward(x), {}

    def widen(self, x: Tensor) -> Tensor:
        """The residual stream in the type of the parameters, where it is kept in another one."""
        return x if self.residual_dtype is None else x.to(next(self.parameters()).dtype)

    def reset(self, init: Init) -> None:
        """Sets the parameters of the four parts."""
        for part in (self.attention_norm, self.attention, self.feedforward_norm, self.feedforward):
            part.reset(init)  # type: ignore[operator]


class Passed(NamedTuple):
    """What a forward pass through the blocks leaves."""

    hidden: Tensor
    """The normalised output of the last block, [B, T, D]."""
    auxiliary: list[Auxiliaries]
    """In training, the auxiliary losses of each layer."""
    further: list[Tensor]
    """The same output of the blocks that predict further tokens, where they are asked for."""


class GPT(LanguageModel):
    """A decoder-only transformer language model. The head has ``forward`` (hidden -> logits) and ``losses``."""

    gradient_checkpointing = False
    """Keeps only the input of each block in training; backward computes the rest again (Chen et al. 2016)."""
    flex_attention = False
    """Whether attention runs by FlexAttention, in sequences of the whole context, where it does more than causal
    attention; see ``flex.py``."""

    def __init__(self, sizes: Sizes, slots: Slots) -> None:
        super().__init__()
        self.sizes = sizes
        self.vocab_size = sizes.vocab_size
        self.context_length = sizes.context_length
        self.num_layers = sizes.num_layers
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.embedding_dim)
        self.position = slots.position(sizes)
        self.embedding_dropout = Dropout(sizes.dropout)
        self.residual: nn.Module | None = None if slots.residual is None else slots.residual(sizes)
        self.multi_token: nn.Module | None = None if slots.multi_token is None else slots.multi_token(sizes, slots)
        self.blocks = nn.ModuleList(Block(sizes, layer, slots) for layer in range(sizes.num_layers))
        if (in_attention := getattr(self.position, "in_attention", None)) is not None:
            for attention in self.attentions():
                attention.position = in_attention
        self.final_norm = slots.norm(sizes, sizes.num_layers)
        self.head = slots.head(sizes)
        self.tie_parameters()
        number_dropout_sites(self)

    def tie_parameters(self) -> None:
        """Makes a tied head share the embedding's matrix."""
        if self.sizes.tied_head:
            self.head.weight = self.token_embedding.weight

    @property
    def output_head(self) -> nn.Module:
        """The module of the slot ``head``."""
        return self.head

    def replace_head(self, num_outputs: int) -> None:
        """Puts a linear head of its own in place of the language head. Further tokens are no longer predicted."""
        if self.multi_token is not None:
            self.multi_token.requires_grad_(False)
        self.sizes = replace(self.sizes, tied_head=False)
        self.head = LinearHead(replace(self.sizes, vocab_size=num_outputs))

    def untie_head(self) -> None:
        """Gives a tied head a matrix of its own, with the embedding's values."""
        self.sizes = replace(self.sizes, tied_head=False)
        self.head.weight = nn.Parameter(self.token_embedding.weight.detach().clone())

    def reset(self, init: Init) -> None:
        """Sets all parameters, from the embeddings to the head."""
        init.embedding(self.token_embedding.weight)
        for part in (self.position, self.residual, *self.blocks, self.final_norm, self.head, self.multi_token):
            if part is not None:
                part.reset(init)

    def hidden_states(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """The normalised output of the last block: ids [B, T] -> [B, T, D]."""
        return self.transform(self.token_embedding(tokens), past, tokens)

    def transform(self, x: Tensor, past: Past | None = None, tokens: Tensor | None = None) -> Tensor:
        """As ``hidden_states``, from token embeddings [B, T, D]; with a ``past`` they continue its texts.

        Raises:
            ValueError: too many tokens; or the model has value embeddings, and ``tokens`` are not given.
        """
        return self._run(x, past, self.context_of(tokens)).hidden

    def context_of(self, tokens: Tensor | None, *, separates: bool = False) -> dict[str, Any]:
        """What attention needs beside hidden states and positions, by keyword.

        The token ids, where it has value embeddings; and with ``separates`` the number of each token's document, where
        documents are separated. A document's last token is the end of text.
        """
        context = NO_CONTEXT
        if any(getattr(block.attention, "value_embedding", None) is not None for block in self.blocks):
            if tokens is None:
                raise ValueError("this model has value embeddings, which need token ids, not embeddings alone")
            context = {"tokens": tokens}
        if separates and self.document_end is not None and tokens is not None:
            ends = F.pad((tokens == self.document_end).int()[:, :-1], (1, 0))
            context = {**context, "documents": ends.cumsum(1)}  # last the sum: FlexAttention loads its stored result
        return context

    def _run(self, x: Tensor, past: Past | None, context: dict[str, Any], *, looks_further: bool = False) -> Passed:
        """From token embeddings through the blocks; ``looks_further`` also runs those that predict further tokens."""
        time, before = x.shape[1], 0 if past is None else past.length
        if before + time > self.context_length:
            raise ValueError(f"{before + time} tokens, but the model's context is {self.context_length}")
        positions = torch.arange(time, device=x.device)[None] if past is None else past.positions(time)
        if self.flex_attention and past is None and time == self.context_length:
            context = {**context, "blocks": self._visible_blocks(x.device, context.get("documents"))}
        x = self.embedding_dropout(self.position(x, positions))
        dtype = x.dtype
        if self.residual is not None:
            x = self.residual.begin(x)  # type: ignore[operator]
        if self.sizes.residual_dtype is not None:
            x = x.to(RESIDUAL_DTYPES[self.sizes.residual_dtype])
        first = x
        found: list[Auxiliaries] = []  # written so that torch.compile keeps one graph: it cannot trace list[...]()
        for layer, block in enumerate(self.blocks):
            trunk = x if self.residual is None else self.residual(x, first, layer)
            x, auxiliary = self._through(block, trunk, positions, past, context)
            found.append(auxiliary)
        outputs = [x]
        if looks_further and self.multi_token is not None:
            for block in self.multi_token.blocks:  # type: ignore[union-attr]
                output, auxiliary = self._through(block, trunk, positions, past, context)
                outputs.append(output)
                found.append(auxiliary)
        if past is not None:
            past.advance(time)
        hidden, *further = (self.final_norm(x if self.sizes.residual_dtype is None else x.to(dtype)) for x in outputs)
        return Passed(hidden, found, further)

    def attentions(self) -> list[Any]:
        """The attention of every block, those that predict further tokens included."""
        return [module.attention for module in self.modules() if isinstance(module, Block)]

    def _visible_blocks(self, device: torch.device, documents: Tensor | None) -> dict[int, Any]:
        """The block masks that all layers share, by window; a layer whose window is not in it needs none."""
        windows = {layer.window for layer in self.attentions() if layer.mechanisms or documents is not None}
        return {
            window: visible_blocks(self.context_length, device, window=window, documents=documents)
            for window in sorted(windows)
        }

    def _through(
        self, block: nn.Module, x: Tensor, positions: Tensor, past: Past | None, context: dict[str, Any]
    ) -> tuple[Tensor, Auxiliaries]:
        """Runs a block; with gradient checkpointing, backward runs it again and draws the same dropout masks."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, x, positions, past, context, use_reentrant=False)
        return block(x, positions, past, context)

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Scores of the next token at every position: ids [B, T] -> logits [B, T, V]."""
        return self.head(self.hidden_states(tokens, past))

    def next_logits(self, tokens: Tensor, past: Past) -> Tensor:
        """Scores after the last position, without those of the others: ids [B, T] -> logits [B, V]."""
        return self.head(self.hidden_states(tokens, past)[:, -1])

    def new_past(self, capacity: int) -> Past:
        """A cache of keys and values."""
        return KeyValueCache(capacity=capacity)

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target: ids [B, T] and [B, T] -> fp32 [B, T]."""
        return self.head.losses(self._scored_states(tokens), targets)  # type: ignore[operator]

    def losses_of(self, tokens: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """As ``losses``, of the N targets alone where ``counts`` [B, T] is true; the head sees no others: fp32 [N]."""
        hidden = self._scored_states(tokens)[counts][None]
        return self.head.losses(hidden, targets[counts][None])[0]  # type: ignore[operator]

    def _scored_states(self, tokens: Tensor) -> Tensor:
        """As ``hidden_states``, of text whose losses are asked for: documents may be separated."""
        return self._run(self.token_embedding(tokens), None, self.context_of(tokens, separates=True)).hidden

    def training_losses(self, tokens: Tensor, targets: Tensor, counts: Tensor | None = None) -> TrainingLosses:
        """As ``losses`` or ``losses_of``; in training with the auxiliary losses of layers, head and further tokens."""
        if not (self.training and self._has_auxiliary_losses):
            return super().training_losses(tokens, targets, counts)
        multi_token = None if self.num_classes else self.multi_token
        context, looks_further = self.context_of(tokens, separates=True), multi_token is not None
        passed = self._run(self.token_embedding(tokens), None, context, looks_further=looks_further)
        hidden, auxiliary = passed.hidden, mean_over_layers(passed.auxiliary)
        if multi_token is not None:
            auxiliary |= multi_token.auxiliary(passed.further, self.head.losses, targets, counts)  # type: ignore[operator]
        targets_of_rows = tokens.shape[1] if counts is None else counts.sum(1)
        sums = {name: (one.values * targets_of_rows).sum() for name, one in auxiliary.items()}
        penalty = sum(one.coefficient * sums[name] for name, one in auxiliary.items() if one.coefficient)
        if counts is not None:
            hidden, targets = hidden[counts][None], targets[counts][None]
        if z_loss := getattr(self.head, "z_loss", None):
            losses, squares = self.head.penalised_losses(hidden, targets)  # type: ignore[operator]
            sums["z_loss"] = squares.sum()
            losses, penalty = losses - z_loss * squares, penalty + z_loss * sums["z_loss"]  # gradients stay in losses
        else:
            losses = self.head.losses(hidden, targets)  # type: ignore[operator]
        return TrainingLosses(losses if counts is None else losses[0], sums, penalty)

    @property
    def _has_auxiliary_losses(self) -> bool:
        has_own = any(hasattr(block.feedforward, "forward_with_auxiliary") for block in self.blocks)
        return has_own or bool(getattr(self.head, "z_loss", None)) or self.multi_token is not None
