"""Lanes: row b of successive batches continues the same text, as recurrent models need it.

The text from ``start_token`` on is divided into G lanes of equal length (G: global batch). Lane b is row b of every
batch. Step s of an epoch takes tokens ``[s*T, (s+1)*T]`` of each lane (T: context length): T inputs and one more, the
last target. The last sequences of every lane may be held out for validation. What remains of a lane after its last
whole sequence is left out, less than T + 1 tokens, and so is what remains of the text, less than G tokens.
"""

from dataclasses import dataclass
from math import ceil

from fromscratch.data.batches import SequenceBatches


@dataclass(frozen=True)
class LaneBatches(SequenceBatches):
    """The sequences of a run in lanes, by step. Sequence i of the run is in lane ``i % G``."""

    validation_share: float = 0.0
    """Share of every lane's sequences, at its end, that are held out; at least one sequence unless it is 0."""

    @property
    def lane_tokens(self) -> int:
        """Tokens of each lane."""
        return max(0, self.split.tokens - self.start_token) // self.global_batch

    @property
    def held_out_per_lane(self) -> int:
        """Sequences of each lane that are held out."""
        return max(1, round(self._sequences_per_lane * self.validation_share)) if self.validation_share else 0

    @property
    def steps_per_epoch(self) -> int:
        return max(0, self._sequences_per_lane - self.held_out_per_lane)

    @property
    def sequences_per_epoch(self) -> int:
        return self.steps_per_epoch * self.global_batch

    @property
    def unused_tokens(self) -> int:
        """Tokens at the ends of the lanes and of the text that are neither trained on nor held out."""
        used = self._sequences_per_lane * self.context_length + 1
        return self.split.tokens - self.start_token - self.global_batch * used

    def begins_text(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def held_out_starts(self) -> list[int]:
        """Index in the split of the first token of each lane's held-out end."""
        begin = self.start_token + self.steps_per_epoch * self.context_length
        return [begin + lane * self.lane_tokens for lane in range(self.global_batch)]

    @property
    def _sequences_per_lane(self) -> int:
        return max(0, self.lane_tokens - 1) // self.context_length

    def _start_of(self, index: int) -> int:
        step, lane = divmod(index, self.global_batch)
        return self.start_token + lane * self.lane_tokens + step % self.steps_per_epoch * self.context_length

    def _min_tokens_for(self, steps: int) -> int:
        trained = -(-steps // self.epochs)
        held_out = max(1, ceil(trained / (1 - self.validation_share)) - trained) if self.validation_share else 0
        return self.start_token + self.global_batch * ((trained + held_out) * self.context_length + 1)

    @property
    def _layout(self) -> str:
        held_out = f", the end of each held out ({self.validation_share:.0%})" if self.validation_share else ""
        return f"in {self.global_batch} lanes from token {self.start_token:,}{held_out}"
