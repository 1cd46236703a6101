"""Batches: a function of the step alone, and never one more than the data holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenSplit
from fromscratch.errors import DataError


def split_of(tokens: int, *, shards: int = 1) -> TokenSplit:
    """Tokens 0, 1, 2, ... in some shards."""
    pieces = tuple(np.array_split(np.arange(tokens, dtype=np.uint16), shards))
    begins = tuple(int(b) for b in np.cumsum([0, *(len(piece) for piece in pieces[:-1])]))
    return TokenSplit("train", pieces, begins)


@given(
    tokens=st.integers(2, 500),
    context=st.integers(1, 20),
    batch=st.integers(1, 5),
    start=st.integers(0, 50),
    epochs=st.integers(1, 3),
)
def test_all_steps_can_be_read_and_no_further_one(
    tokens: int, context: int, batch: int, start: int, epochs: int
) -> None:
    sequences = SequenceBatches(split_of(tokens), context, batch, start_token=start, epochs=epochs, shuffle_seed=1)
    for step in range(sequences.max_steps):
        assert sequences.read(sequences.sequence_indices(step)).shape == (batch, context + 1)
    assert sequences.steps_for(sequences.max_steps * sequences.tokens_per_step) == sequences.max_steps
    with pytest.raises(DataError, match="the run needs"):
        sequences.steps_for(sequences.max_steps * sequences.tokens_per_step + 1)
    unused = sequences.sequences_per_epoch * epochs - sequences.max_steps * batch
    assert unused < batch  # not one batch too few either


@given(st.integers(1, 10_000))
def test_a_budget_is_rounded_up_to_whole_global_batches(budget: int) -> None:
    sequences = SequenceBatches(split_of(20_001), context_length=8, global_batch=5)
    steps = sequences.steps_for(budget)
    assert (steps - 1) * 40 < budget <= steps * 40


def test_the_last_sequence_needs_one_token_more_than_its_inputs() -> None:
    assert SequenceBatches(split_of(16), context_length=4, global_batch=1).max_steps == 3
    assert SequenceBatches(split_of(17), context_length=4, global_batch=1).max_steps == 4


def test_the_error_says_how_many_tokens_there_are_and_how_many_are_needed() -> None:
    sequences = SequenceBatches(split_of(100), context_length=10, global_batch=2, start_token=20)
    with pytest.raises(DataError, match=r"has 100 tokens but the run needs 121 \(5 steps of 20 tokens from token 20"):
        sequences.steps_for(81)
    assert SequenceBatches(split_of(121), 10, 2, start_token=20).steps_for(81) == 5
    assert SequenceBatches(split_of(120), 10, 2, start_token=20).max_steps == 4


def test_start_token_continues_on_fresh_data() -> None:
    first = SequenceBatches(split_of(100), context_length=10, global_batch=2)
    rest = SequenceBatches(split_of(100), context_length=10, global_batch=2, start_token=2 * first.tokens_per_step)
    np.testing.assert_array_equal(rest.read([0, 1]), first.read(first.sequence_indices(2)))


def test_a_start_beyond_the_data_is_an_error_and_not_a_crash() -> None:
    sequences = SequenceBatches(split_of(100), context_length=10, global_batch=2, start_token=1_000)
    assert sequences.max_steps == 0
    with pytest.raises(DataError, match=r"lower data\.start_token"):
        sequences.steps_for(1)


def test_every_epoch_has_each_sequence_once_in_an_order_of_its_own() -> None:
    sequences = SequenceBatches(split_of(401), context_length=4, global_batch=10, epochs=2, shuffle_seed=3)
    firsts = sequences.read(range(200))[:, 0]
    epochs = firsts[:100].tolist(), firsts[100:].tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 400, 4))
    assert epochs[0] != epochs[1] != sorted(epochs[1])
    again = SequenceBatches(split_of(401, shards=7), context_length=4, global_batch=5, epochs=2, shuffle_seed=3)
    np.testing.assert_array_equal(again.read(range(200))[:, 0], firsts)
    other = SequenceBatches(split_of(401), context_length=4, global_batch=10, epochs=2, shuffle_seed=4)
    assert other.read(range(200))[:, 0].tolist() != firsts.tolist()


@given(begin=st.integers(0, 90), count=st.integers(0, 90), shards=st.integers(1, 12))
def test_reading_crosses_shards(begin: int, count: int, shards: int) -> None:
    split = split_of(90, shards=shards)
    if begin + count > 90:
        with pytest.raises(ValueError, match="of a split with 90"):
            split.read(begin, count)
    else:
        np.testing.assert_array_equal(split.read(begin, count), np.arange(begin, begin + count))
