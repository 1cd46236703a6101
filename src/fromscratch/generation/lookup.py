"""Guesses how a text goes on, from how it went on before.

Where a text repeats itself (a name, a list, a line of code, the loops of a small model), what followed
the last time follows again. A model can judge several guessed tokens in the time of one, because
reading its weights takes longer than using them; the tokens it would have chosen otherwise are taken
all the same, so a guess changes the speed and not the text (but where rounding decides between two
tokens: several rows at once are added up in another order than one).

Sources: Yang et al. 2023, "Inference with Reference: Lossless Acceleration of Large Language Models";
Saxena 2023, "Prompt Lookup Decoding".
"""

from collections.abc import Sequence

MATCHED_TOKENS = 3  # of the end of the text: fewer recur by chance
LONGEST_PAUSE = 64


class Lookup:
    """Guesses for one text that grows. After guesses that were wrong at once it pauses, longer each time."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Tokens in a guess."""
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._pause = 0
        self._next_pause = 1

    def guess(self, text: Sequence[int]) -> list[int]:
        """What may follow: ``most`` tokens, or none. The text must begin as the one before did."""
        previous = self._place_after(text)
        if previous is None:
            return []
        if self._pause > 0:
            self._pause -= 1
            return []
        period = len(text) - previous  # a repetition shorter than the guess goes round
        return [text[previous + offset % period] for offset in range(self.most)]

    def learn(self, accepted: int) -> None:
        """How many tokens of the last guess were right."""
        if accepted:
            self._next_pause = 1
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)

    def _place_after(self, text: Sequence[int]) -> int | None:
        """Where the text went on after the last earlier place that ended as it ends now."""
        for end in range(max(self._seen + 1, MATCHED_TOKENS), len(text)):
            self._ends[tuple(text[end - MATCHED_TOKENS : end])] = end
        self._seen = max(self._seen, len(text) - 1)
        return self._ends.get(tuple(text[-MATCHED_TOKENS:])) if len(text) > MATCHED_TOKENS else None
