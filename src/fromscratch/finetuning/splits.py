"""Divides records into parts for training, validation and test, by a seed."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.records import as_json
from fromscratch.randomness import derive_seed

FOLDER = "split"
TEST_FILE = f"{FOLDER}/test.json"


@dataclass(frozen=True)
class Split:
    """Indices of records in the file, each part in the order of the file."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    repeated: int = 0
    """Records that ask the same as an earlier one; they are in its part."""
    not_drawn: int = 0
    """Records of the training part that are left out, because fewer were wanted; they are in no part."""

    def of(self, indices: Sequence[int]) -> "Split":
        """Returns the split of those records of a larger file; the split counts records from 0."""
        train, validation, test = (tuple(indices[i] for i in part) for part in (self.train, self.validation, self.test))
        return Split(train, validation, test, self.repeated)

    def files(self, records: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Returns what a run keeps: the records of each part, by the name of the file."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {f"{FOLDER}/{name}.json": as_json([records[i] for i in part]) for name, part in parts.items()}

    def notices(self) -> list[str]:
        """Returns what the user should know."""
        repeated = f"{self.repeated:,} records ask the same as an earlier one; each is in the same part as that one"
        return [*([repeated] if self.repeated else []), *self.notices_of_drawing()]

    def notices_of_drawing(self) -> list[str]:
        """Returns how many training records were drawn, where not all are wanted."""
        whole = len(self.train) + self.not_drawn
        drawn = f"tune.train_examples: {len(self.train):,} of {whole:,} training records are drawn"
        return [drawn] if self.not_drawn else []


def split_records(keys: Sequence[str], *, validation: float, test: float, seed: int, where: str) -> Split:
    """Draws the parts. Records with the same key come into the same part, so that no part knows another's answers.

    Args:
        keys: what identifies each record, such as its question.
        validation, test: shares of the different keys; the rest is for training.
        where: the name of the file, for messages.

    Raises:
        DataError: a part would be empty.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    order = np.random.default_rng(derive_seed(seed, "split")).permutation(len(groups))
    num_test, num_validation = round(test * len(groups)), max(1, round(validation * len(groups)))
    if test:
        num_test = max(1, num_test)
    if len(groups) - num_test - num_validation < 1:
        raise DataError(
            f"{where}: {len(groups)} different records are too few for parts of {num_validation} for validation and "
            f"{num_test} for a test; give more records, or lower tune.validation_share and tune.test_share"
        )
    members = list(groups.values())
    parts = np.split(order, [num_test, num_test + num_validation])
    chosen = [tuple(sorted(index for group in part for index in members[group])) for part in parts]
    return Split(train=chosen[2], validation=chosen[1], test=chosen[0], repeated=len(keys) - len(groups))


def draw_training(split: Split, count: int | None, groups: Sequence[Hashable], seed: int) -> Split:
    """Leaves only so many records in the training part, each group with its share of them; None leaves all.

    Args:
        groups: the group of each record of the file, such as its class.

    Raises:
        UsageError: the training part has fewer.
    """
    if count is None:
        return split
    if count > len(split.train):
        raise UsageError(f"tune.train_examples = {count:,}: the training part has {len(split.train):,} records")
    order = np.random.default_rng(derive_seed(seed, "train-examples")).permutation(split.train).tolist()
    members: dict[Hashable, list[int]] = {}
    for index in order:
        members.setdefault(groups[index], []).append(index)
    shares = [((place + 0.5) / len(own), index) for own in members.values() for place, index in enumerate(own)]
    drawn = tuple(sorted(index for _, index in sorted(shares)[:count]))
    return replace(split, train=drawn, not_drawn=len(split.train) - count)
