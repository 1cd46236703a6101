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

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cache import KeyValueCache, Past
from .dropout import Dropout, number_dropout_sites
from .language_model import LanguageModel
from .layers import LinearHead
from .mechanism import Init, Sizes, Slots

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

    def forward(self, x: Tensor, positions: Tensor, past: Past | None = None) -> Tensor:
        """[B, T, D] and [B or 1, T] -> [B, T, D]."""
        branch = self.attention_dropout(self.attention(self.attention_norm(self.widen(x)), positions, past))
        x = x + branch.to(x.dtype)
        return x + self.feedforward_dropout(self.feedforward(self.feedforward_norm(self.widen(x)))).to(x.dtype)

    def widen(self, x: Tensor) -> Tensor:
        """The residual stream in the type of the parameters, where it is kept in another one."""
        return x if self.residual_dtype is None else x.to(next(self.parameters()).dtype)

    def reset(self, init: Init) -> None:
        """Sets the parameters of the four parts."""
        for part in (self.attention_norm, self.attention, self.feedforward_norm, self.feedforward):
            part.reset(init)  # type: ignore[operator]


class GPT(LanguageModel):
    """A decoder-only transformer language model. The head has ``forward`` (hidden -> logits) and ``losses``."""

    gradient_checkpointing = False
    """Keeps only the input of each block in training; backward computes the rest again (Chen et al. 2016)."""

    def __init__(self, sizes: Sizes, slots: Slots) -> None:
        super().__init__()
        self.sizes = sizes
        self.vocab_size = sizes.vocab_size
        self.context_length = sizes.context_length
        self.num_layers = sizes.num_layers
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.embedding_dim)
        self.position = slots.position(sizes)
        self.embedding_dropout = Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes, layer, slots) for layer in range(sizes.num_layers))
        if (in_attention := getattr(self.position, "in_attention", None)) is not None:
            for block in self.blocks:
                block.attention.position = in_attention  # type: ignore[union-attr]
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
        """Puts a linear head of its own in place of the language head."""
        self.sizes = replace(self.sizes, tied_head=False)
        self.head = LinearHead(replace(self.sizes, vocab_size=num_outputs))

    def untie_head(self) -> None:
        """Gives a tied head a matrix of its own, with the embedding's values."""
        self.sizes = replace(self.sizes, tied_head=False)
        self.head.weight = nn.Parameter(self.token_embedding.weight.detach().clone())

    def reset(self, init: Init) -> None:
        """Sets all parameters, from the embeddings to the head."""
        init.embedding(self.token_embedding.weight)
        for part in (self.position, *self.blocks, self.final_norm, self.head):
            part.reset(init)

    def hidden_states(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """The normalised output of the last block: ids [B, T] -> [B, T, D]."""
        return self.transform(self.token_embedding(tokens), past)

    def transform(self, x: Tensor, past: Past | None = None) -> Tensor:
        """As ``hidden_states``, from token embeddings [B, T, D]; with a ``past`` they continue its texts."""
        time, before = x.shape[1], 0 if past is None else past.length
        if before + time > self.context_length:
            raise ValueError(f"{before + time} tokens, but the model's context is {self.context_length}")
        positions = torch.arange(time, device=x.device)[None] if past is None else past.positions(time)
        x = self.embedding_dropout(self.position(x, positions))
        dtype = x.dtype
        if self.sizes.residual_dtype is not None:
            x = x.to(RESIDUAL_DTYPES[self.sizes.residual_dtype])
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, positions, past, use_reentrant=False)  # draws the same dropout masks again
            else:
                x = block(x, positions, past)
        if past is not None:
            past.advance(time)
        return self.final_norm(x if self.sizes.residual_dtype is None else x.to(dtype))

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
        return self.head.losses(self.hidden_states(tokens), targets)  # type: ignore[operator]

    def losses_of(self, tokens: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """As ``losses``, of the N targets alone where ``counts`` [B, T] is true; the head sees no others: fp32 [N]."""
        return self.head.losses(self.hidden_states(tokens)[counts][None], targets[counts][None])[0]  # type: ignore[operator]
