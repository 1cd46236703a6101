"""Prompt lookup decoding: speculative tokens copied from an earlier place in the same text.

Where a text repeats itself (a name, a list, a line of code, the loops of a small model), the tokens that
followed last time are likely to follow again. A model verifies several draft tokens in about the time of
one, because reading its weights takes longer than computing with them. A draft token that the model would
not have chosen is dropped, so drafts change the speed, not the text. The exception is a near tie between
two tokens, which rounding may decide differently, because several rows are summed in another order than
one.

Sources: Yang et al. 2023, "Inference with Reference: Lossless Acceleration of Large Language Models";
Saxena 2023, "Prompt Lookup Decoding".
"""

from collections.abc import Sequence

MATCHED_TOKENS = 3  # at the end of the text; fewer recur by chance
MAX_PAUSE = 64


class PromptLookup:
    """Drafts tokens for one growing text. After a draft whose first token was wrong it pauses, longer each time."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        """Tokens in a draft; 0 drafts nothing."""
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0
        self._pause = 0
        self._next_pause = 1

    def draft(self, text: Sequence[int]) -> list[int]:
        """Returns ``num_tokens`` tokens that may follow, or none. The text must extend that of the call before."""
        previous = self._index_after_match(text)
        if previous is None:
            return []
        if self._pause > 0:
            self._pause -= 1
            return []
        period = len(text) - previous  # a repetition shorter than the draft is repeated
        return [text[previous + offset % period] for offset in range(self.num_tokens)]

    def adapt(self, accepted: int) -> None:
        """Sets the next pause from the number of accepted tokens of the last draft."""
        if accepted:
            self._next_pause = 1
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)

    def _index_after_match(self, text: Sequence[int]) -> int | None:
        """Returns the index after the last earlier occurrence of the text's last tokens, or None."""
        for end in range(max(self._num_indexed + 1, MATCHED_TOKENS), len(text)):
            self._ends[tuple(text[end - MATCHED_TOKENS : end])] = end
        self._num_indexed = max(self._num_indexed, len(text) - 1)
        return self._ends.get(tuple(text[-MATCHED_TOKENS:])) if len(text) > MATCHED_TOKENS else None
