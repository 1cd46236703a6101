"""The text that a model is measured on: a slice of a split, or the ends of its run's lanes."""

from fromscratch.config.loading import read_run_config
from fromscratch.data.lanes import LaneBatches
from fromscratch.data.store import TokenStore
from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.session.plan import VALIDATION_SPLIT, check_same_tokenizer, ends_of_lanes, training_sequences
from fromscratch.training.held_out import HeldOut, TokenSlice

LANES = "lanes"
"""The name of what a recurrent run holds out at the ends of its lanes, in place of a split."""


def default_split(loaded: LoadedModel) -> str:
    """Returns the name of what the model's run evaluates on: ``lanes``, or ``validation``."""
    config = read_run_config(loaded.run.config) if loaded.run else None
    return LANES if config and config.data.validation_share else VALIDATION_SPLIT


def evaluated_part(loaded: LoadedModel, store: TokenStore, split: str, *, start: int, tokens: int | None) -> HeldOut:
    """Returns what a model is measured on.

    Args:
        split: a split of the store, or ``lanes``.
        start: first token of the slice.
        tokens: maximum number of tokens to predict; None is all.

    Raises:
        UsageError: the model's run has no lanes with held-out ends, or a start is given for them.
        DataError: the store was made with another tokenizer, or has no such text.
    """
    check_same_tokenizer(store, loaded.tokenizer)
    if split != LANES:
        return TokenSlice.of(store.split(split), start=start, tokens=tokens)
    if loaded.run is None or default_split(loaded) != LANES:
        raise UsageError(
            f"--split {LANES}: {loaded.source} has no run that held out the ends of lanes; name a split of the store"
        )
    if start:
        raise UsageError(f"--start {start}: the ends of the lanes are measured from their first token; leave it out")
    lanes = training_sequences(read_run_config(loaded.run.config), store)
    assert isinstance(lanes, LaneBatches)
    return ends_of_lanes(lanes, tokens)


def part_held_out_by_both(
    a: LoadedModel, b: LoadedModel, store: TokenStore, split: str, *, start: int, tokens: int | None
) -> HeldOut:
    """Returns what two models are compared on; arguments and errors as for ``evaluated_part``.

    Raises:
        UsageError: their runs held out different ends of lanes, so that one may have been trained on the other's.
    """
    part = evaluated_part(a, store, split, start=start, tokens=tokens)
    if split == LANES and evaluated_part(b, store, split, start=start, tokens=tokens).texts != part.texts:
        raise UsageError(
            f"--split {LANES}: the runs of {a.source} and {b.source} held out different text; name a split of the "
            "store, or another store"
        )
    return part
