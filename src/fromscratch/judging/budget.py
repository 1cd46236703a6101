"""What a judge costs, and a cap on it."""

import math
from dataclasses import dataclass

from fromscratch.errors import UsageError

TOKENS_PER_PRICE = 1e6
TOKENS_PER_MESSAGE = 16
"""More than the marks around a message take in any chat template in use."""


@dataclass
class Budget:
    """Dollars spent on a results folder, in this command and earlier ones, and what requests in flight may cost."""

    price_in: float | None
    """Dollars per million input tokens; None: unknown."""
    price_out: float | None
    max_dollars: float | None
    """None: no cap."""
    input_tokens: int = 0
    output_tokens: int = 0
    _reserved: float = 0.0

    def __post_init__(self) -> None:
        """Raises UsageError for a cap without prices, and for what is no number."""
        for option in ("price_in", "price_out", "max_dollars"):
            value = getattr(self, option)
            if value is not None and not math.isfinite(value):  # with NaN, no sum is above the cap
                raise UsageError(f"--{option.replace('_', '-')} {value}: must be a number")
        if self.max_dollars is not None and (self.price_in is None or self.price_out is None):
            raise UsageError("--max-dollars: needs --price-in and --price-out, in dollars per million tokens")

    def dollars(self) -> float | None:
        """Returns what was spent; None without prices."""
        return self._cost(self.input_tokens, self.output_tokens)

    def _cost(self, input_tokens: int, output_tokens: int) -> float | None:
        if self.price_in is None or self.price_out is None:
            return None
        return (input_tokens * self.price_in + output_tokens * self.price_out) / TOKENS_PER_PRICE

    def reserve(self, input_tokens: int, output_tokens: int) -> bool:
        """Reserves the most that a request can cost; False if the cap does not allow it."""
        cost = self._cost(input_tokens, output_tokens) or 0.0
        if self.max_dollars is not None and (self.dollars() or 0.0) + self._reserved + cost > self.max_dollars:
            return False
        self._reserved += cost
        return True

    def settle(self, reserved: tuple[int, int], used: tuple[int, int]) -> None:
        """Replaces a reservation by what was used."""
        self._reserved -= self._cost(*reserved) or 0.0
        self.input_tokens += used[0]
        self.output_tokens += used[1]


def max_input_tokens(messages: list[dict[str, str]]) -> int:
    """Returns a bound for the tokens of a prompt: a token is at least one byte of UTF-8."""
    return sum(len(m["content"].encode("utf-8", "replace")) + TOKENS_PER_MESSAGE for m in messages)
