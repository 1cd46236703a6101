"""What a model remembers of a text while it continues it: the keys and values of every position seen.

The memory is allocated once, for as many positions as will ever be needed, so that a step copies one
position in and nothing else. Prompts of different length are padded on the left; the padding is
never looked at.

Letters: B batch, H heads, S positions remembered, T positions added, C channels of a head.
"""

from typing import Protocol

import torch
from torch import Tensor


class LayerPast(Protocol):
    """What attention needs to know of earlier positions."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Takes in new keys and values [B, H, T, C]; returns all of them, [B, H, S, C], and who sees whom.

        The last is True where a new position may look at a remembered one, in a shape that broadcasts
        to [B, H, T, S]; None where every new position may look at all.
        """


class Past(Protocol):
    """The memory of a whole model."""

    @property
    def length(self) -> int:
        """Positions remembered so far, padding included."""

    def positions(self, num_new: int) -> Tensor:
        """Which positions the next ``num_new`` tokens have in their texts: [B or 1, T]."""

    def layer(self, index: int) -> LayerPast:
        """The memory of one layer."""

    def advance(self, num_new: int) -> None:
        """All layers have taken in ``num_new`` positions."""


class KeyValueCache:
    """A preallocated memory for up to ``capacity`` positions of each text of a batch."""

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self.length = 0
        self._device: torch.device | None = None
        self._padding: Tensor | None = None
        self._visible: tuple[tuple[int, int], Tensor | None] = ((0, 0), None)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def begin(self, padding: list[int], device: torch.device) -> None:
        """Forgets everything; text ``b`` will begin with ``padding[b]`` tokens that do not count."""
        self.length = 0
        self._device = device
        self._visible = ((0, 0), None)
        self._padding = torch.tensor(padding, device=device)[:, None] if any(padding) else None

    def rewind(self, length: int) -> None:
        """Forgets all but the first ``length`` positions, padding included."""
        self.length = min(length, self.length)

    def positions(self, num_new: int) -> Tensor:
        """[B, T] with padding, else [1, T]; padding itself is given position 0."""
        columns = torch.arange(self.length, self.length + num_new, device=self._device)[None]
        return columns if self._padding is None else (columns - self._padding).clamp(min=0)

    def layer(self, index: int) -> "LayerCache":
        """The memory of one layer."""
        return LayerCache(self, index)

    def advance(self, num_new: int) -> None:
        """All layers have taken in ``num_new`` positions."""
        self.length += num_new

    def store(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts [B, H, T, C] behind what a layer remembers; returns all of it, [B, H, S, C]."""
        if index == len(self._keys):
            batch, heads, _, channels = key.shape
            self._keys.append(key.new_empty(batch, heads, self._capacity, channels))
            self._values.append(value.new_empty(batch, heads, self._capacity, channels))
        end = self.length + key.shape[2]
        keys, values = self._keys[index][:, :, :end], self._values[index][:, :, :end]
        keys[:, :, self.length :] = key
        values[:, :, self.length :] = value
        return keys, values

    def visible(self, num_new: int) -> Tensor | None:
        """Who sees whom, for the next ``num_new`` positions: [T, S], with padding [B, 1, T, S]; None is all."""
        asked = (self.length, num_new)
        if self._visible[0] != asked:  # the same for every layer
            self._visible = (asked, self._who_sees_whom(num_new))
        return self._visible[1]

    def _who_sees_whom(self, num_new: int) -> Tensor | None:
        if num_new == 1 and self._padding is None:
            return None
        end = self.length + num_new
        remembered = torch.arange(end, device=self._device)
        new = remembered[self.length :, None]
        causal = remembered <= new
        if self._padding is None:
            return causal
        real = remembered >= self._padding  # [B, S]
        itself = remembered == new  # a softmax over nothing has no value, so padding sees itself
        return (causal & real[:, None] | itself)[:, None]


class LayerCache:
    """One layer's part of a ``KeyValueCache``."""

    def __init__(self, cache: KeyValueCache, index: int) -> None:
        self._cache = cache
        self._index = index

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See ``LayerPast``."""
        keys, values = self._cache.store(self._index, key, value)
        return keys, values, self._cache.visible(key.shape[2])
