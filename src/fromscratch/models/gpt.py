"""GPT-2, top to bottom.

Token and position embeddings, a stack of pre-norm blocks (attention, then a feed-forward network,
each added to the residual stream), a final norm, and a head that scores every entry of the
vocabulary. What varies between experiments is handed in as modules: the *slots* ``position``,
``attention``, ``feedforward``, ``norm`` and ``head``.

Letters: B batch, T time, D embedding, V vocabulary.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Vaswani et al.
2017. This file and those it imports need torch alone.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .cache import LayerPast, Past
from .dropout import Dropout, number_dropout_sites

ModuleMaker = Callable[[], nn.Module]


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, *, norm: ModuleMaker, attention: ModuleMaker, feedforward: ModuleMaker, dropout: float) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention()
        self.attention_dropout = Dropout(dropout)
        self.feedforward_norm = norm()
        self.feedforward = feedforward()
        self.feedforward_dropout = Dropout(dropout)

    def forward(self, x: Tensor, past: LayerPast | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), past))
        return x + self.feedforward_dropout(self.feedforward(self.feedforward_norm(x)))


class GPT(nn.Module):
    """A decoder-only transformer language model.

    Args:
        vocab_size: number of token ids, V.
        context_length: most positions one sequence may have.
        embedding_dim: width of the residual stream, D.
        num_layers: number of blocks.
        dropout: probability for embeddings and for both additions of every block.
        position: makes the module that adds position information, [B, T, D] -> [B, T, D].
        norm, attention, feedforward: make one module per use, [B, T, D] -> [B, T, D].
        head: makes the module with ``forward`` (hidden -> logits) and ``losses``.
        tied_head: the head's matrix is the token embedding's (Press and Wolf 2017).
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        vocab_size: int,
        context_length: int,
        embedding_dim: int,
        num_layers: int,
        dropout: float,
        tied_head: bool,
        position: ModuleMaker,
        norm: ModuleMaker,
        attention: ModuleMaker,
        feedforward: ModuleMaker,
        head: ModuleMaker,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, embedding_dim)
        self.position = position()
        self.embedding_dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(norm=norm, attention=attention, feedforward=feedforward, dropout=dropout) for _ in range(num_layers)
        )
        self.final_norm = norm()
        self.head = head()
        self.tied_head = tied_head
        self.tie_head()
        number_dropout_sites(self)

    def tie_head(self) -> None:
        """Makes the head share the embedding's matrix, if it is tied; again after ``to_empty``, which parts them."""
        if self.tied_head:
            self.head.weight = self.token_embedding.weight

    def hidden_states(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """The normalised output of the last block: ids [B, T] -> [B, T, D]."""
        return self.transform(self.token_embedding(tokens), past)

    def transform(self, x: Tensor, past: Past | None = None) -> Tensor:
        """As ``hidden_states``, from token embeddings [B, T, D]; with a ``past`` they go on where that ended."""
        time, before = x.shape[1], 0 if past is None else past.length
        if before + time > self.context_length:
            raise ValueError(f"{before + time} tokens, but the model's context is {self.context_length}")
        x = self.embedding_dropout(self.position(x, None if past is None else past.positions(time)))
        for index, block in enumerate(self.blocks):
            x = self.through(block, x, None if past is None else past.layer(index))
        if past is not None:
            past.advance(time)
        return self.final_norm(x)

    def through(self, block: nn.Module, x: Tensor, past: LayerPast | None) -> Tensor:
        """One block, [B, T, D] -> [B, T, D]: the place for whoever recomputes activations."""
        return block(x, past)

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Scores of the next token at every position: ids [B, T] -> logits [B, T, V]."""
        return self.head(self.hidden_states(tokens, past))

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target: ids [B, T] and [B, T] -> fp32 [B, T]."""
        return self.head.losses(self.hidden_states(tokens), targets)  # type: ignore[operator]
