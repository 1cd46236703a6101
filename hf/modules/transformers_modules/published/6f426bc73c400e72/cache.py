"""The memory of generation: keys and values of every earlier token of each text.

A token has a *column*, its index in the remembered tensors, and a *position* in its own text. Prompts of
different length are padded on the left, so that the first position of a text lies in a later column;
the columns before it have negative positions and are masked.

Letters: B batch, H heads, S columns remembered, T columns added, C channels of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Sees = Callable[[Tensor, Tensor], Tensor]
"""Whether queries at some positions see keys at others: two shapes that broadcast -> booleans."""


def causal(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """A token sees itself and all earlier ones."""
    return key_positions <= query_positions


def attention_mask(sees: Sees, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """True where a query sees a key: positions [B or 1, T] and [B or 1, S] -> [B or 1, 1, T, S].

    Padding is seen only by itself. It needs one visible key, because a softmax over no key is NaN.
    """
    query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
    return sees(query, key) & (key >= 0) | (query == key)


class Past:
    """Base class of a model's memory, wherever its tensors are."""

    length = 0
    """Columns remembered so far, padding included."""
    is_padded = False
    """Whether a text has padding."""
    can_rewind = False
    """Whether ``rewind`` can remove the last columns."""
    _shared: tuple[tuple[int, int, int], Tensor | None] | None = None

    def begin(self, padding: list[int], device: torch.device) -> None:
        """Clears the memory. Text ``b`` begins with ``padding[b]`` columns of padding."""
        raise NotImplementedError

    def rewind(self, length: int) -> None:
        """Removes all but the first ``length`` columns."""
        raise NotImplementedError

    def all_positions(self, num_columns: int) -> Tensor:
        """Positions of the first columns: [B or 1, num_columns]; where there is no token, distinct negative ones."""
        raise NotImplementedError

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values [B, H, T, C] to those of a layer; returns all of them, [B, H, S, C]."""
        raise NotImplementedError

    def positions(self, num_new: int) -> Tensor:
        """Positions of the next ``num_new`` tokens: [B or 1, T]."""
        return self.all_positions(self.length + num_new)[:, self.length :]

    def extend(self, layer: int, key: Tensor, value: Tensor, sees: Sees | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Appends a layer's new keys and values [B, H, T, C].

        Returns all of them, [B, H, S, C], and the mask for new queries, [B or 1, 1, T, S]; None masks nothing.
        ``sees`` None is ``causal``, whose mask is computed once for all layers.
        """
        num_new = key.shape[2]
        keys, values = self.store(layer, key, value)
        asked = (self.length, num_new, keys.shape[2])
        if sees is not None:
            return keys, values, self.mask(sees, *asked)
        if self._shared is None or self._shared[0] != asked:
            needs_none = num_new == 1 and keys.shape[2] == self.length + 1 and not self.is_padded
            self._shared = (asked, None if needs_none else self.mask(causal, *asked))
        return keys, values, self._shared[1]

    def mask(self, sees: Sees, length: int, num_new: int, num_columns: int) -> Tensor:
        """See ``attention_mask``, for the queries in ``num_new`` columns after the first ``length``."""
        positions = self.all_positions(num_columns)
        return attention_mask(sees, positions[:, length : length + num_new], positions)

    def advance(self, num_new: int) -> None:
        """Called after all layers have appended ``num_new`` columns."""
        self.length += num_new


class KeyValueCache(Past):
    """Memory for up to ``capacity`` columns, allocated once. A step copies only its own columns."""

    can_rewind = True

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._device: torch.device | None = None
        self._padding: Tensor | None = None
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def begin(self, padding: list[int], device: torch.device) -> None:
        self.length = 0
        self._device = device
        self._shared = None
        self.is_padded = any(padding)
        self._padding = torch.tensor(padding, device=device)[:, None] if self.is_padded else None

    def rewind(self, length: int) -> None:
        self.length = min(length, self.length)

    def all_positions(self, num_columns: int) -> Tensor:
        columns = torch.arange(num_columns, device=self._device)[None]
        return columns if self._padding is None else columns - self._padding

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer == len(self._keys):
            batch, heads, _, channels = key.shape
            self._keys.append(key.new_empty(batch, heads, self._capacity, channels))
            self._values.append(value.new_empty(batch, heads, self._capacity, channels))
        end = self.length + key.shape[2]
        keys, values = self._keys[layer][:, :, :end], self._values[layer][:, :, :end]
        keys[:, :, self.length :] = key
        values[:, :, self.length :] = value
        return keys, values
