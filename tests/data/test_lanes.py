"""Lanes: each row of successive batches continues its text, and its end is held out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fromscratch.data.lanes import LaneBatches
from fromscratch.errors import DataError
from tests.data.test_batches import split_of


@given(
    tokens=st.integers(2, 600),
    context=st.integers(1, 12),
    lanes=st.integers(1, 5),
    start=st.integers(0, 50),
    epochs=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_every_row_continues_its_lane_and_ends_before_what_is_held_out(
    tokens: int, context: int, lanes: int, start: int, epochs: int, share: float
) -> None:
    batches = LaneBatches(
        split_of(tokens, shards=2), context, lanes, start_token=start, epochs=epochs, validation_share=share
    )
    if batches.max_steps == 0:
        with pytest.raises(DataError, match="the run needs"):
            batches.steps_for(1)
        return
    rows = [batches.read(batches.sequence_indices(step)) for step in range(batches.max_steps)]
    assert len(rows) == epochs * batches.steps_per_epoch
    length = (tokens - start) // lanes
    for lane in range(lanes):
        inputs = np.concatenate([batch[lane, :-1] for batch in rows[: batches.steps_per_epoch]])
        begin = start + lane * length
        assert inputs.tolist() == list(range(begin, begin + len(inputs)))
        assert all(batch[lane, 1:].tolist() == (batch[lane, :-1] + 1).tolist() for batch in rows)
        first_held_out = batches.held_out_starts()[lane]
        assert rows[batches.steps_per_epoch - 1][lane, -1] == first_held_out  # the last target trained on
        held_out_end = first_held_out + batches.held_out_per_lane * context
        assert held_out_end < begin + length <= tokens
        assert begin + length - held_out_end - 1 < context  # no whole sequence is left out
    for epoch in range(1, epochs):
        assert np.array_equal(rows[epoch * batches.steps_per_epoch], rows[0])
    begins = [step for step in range(batches.max_steps) if batches.begins_text(step)]
    assert begins == list(range(0, batches.max_steps, batches.steps_per_epoch))
    assert (batches.held_out_per_lane > 0) == (share > 0)


def test_what_is_left_out_is_counted() -> None:
    batches = LaneBatches(split_of(103), 10, 2, validation_share=0.2)
    assert (batches.lane_tokens, batches.steps_per_epoch, batches.held_out_per_lane) == (51, 4, 1)
    assert batches.unused_tokens == 1
    assert LaneBatches(split_of(103), 10, 3).unused_tokens == 1 + 3 * 3


@pytest.mark.parametrize(
    ("tokens", "share", "sentence"),
    [
        (20, 0.1, r"has 20 tokens but the run needs 82 \(1 steps of 40 tokens in 2 lanes.*held out \(10%\)\); lower"),
        (41, 0.0, r"has 41 tokens but the run needs 42 .*lower train.global_batch or model.context_length"),
    ],
)
def test_b43_a_text_too_short_for_its_lanes_is_told(tokens: int, share: float, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        LaneBatches(split_of(tokens), 20, 2, validation_share=share).steps_for(1)
    enough = 82 if share else 42
    assert LaneBatches(split_of(enough), 20, 2, validation_share=share).max_steps == 1


def test_a_budget_beyond_the_text_is_told_with_the_epochs_that_it_takes() -> None:
    batches = LaneBatches(split_of(401), 10, 2, validation_share=0.1)
    assert batches.max_steps == 17
    with pytest.raises(DataError, match=r"--set data.epochs=3"):
        batches.steps_for(2 * 17 * 20 + 1)
