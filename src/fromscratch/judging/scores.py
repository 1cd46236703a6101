"""Scores that another program saved, and test losses of models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.judging.responses import load_scores
from fromscratch.judging.statistics import Estimate, mean_of, paired_differences, verdict_of
from fromscratch.runs.records import to_float

MEASURED = ("store", "split", "start", "tokens")
"""The keys of an evaluation that say on which text a loss was measured."""


@dataclass(frozen=True)
class ScoreList:
    """The scores of one file."""

    name: str
    scores: int
    missing: int
    mean: Estimate


@dataclass(frozen=True)
class ScoreDifference:
    """A file's scores minus those of another one, question by question."""

    name: str
    other: str
    mean: Estimate
    verdict: str


def report_scores(paths: Sequence[Path], *, margin: float) -> tuple[list[ScoreList], list[ScoreDifference]]:
    """Returns the mean of every list of scores, and their paired differences.

    Raises:
        UsageError: no such file.
        DataError: one holds something else, or two have different lengths, and so other questions.
    """
    lists = {path.stem: np.array(load_scores(path)) for path in paths}
    (first, scores), *others = lists.items()
    for name, other in others:
        if len(other) != len(scores):
            raise DataError(
                f"{name}: has {len(other)} scores, {first} has {len(scores)}; item {min(len(other), len(scores))} is "
                "the first that one of them lacks, and which questions they share is unknown; report them one by one"
            )
    summaries = [
        ScoreList(name, int(np.isfinite(values).sum()), int(np.isnan(values).sum()), mean_of(values))
        for name, values in lists.items()
    ]
    names, pairs = list(lists), list(combinations(range(len(lists)), 2))
    if not pairs:
        return summaries, []
    found = paired_differences(np.column_stack(list(lists.values())), pairs)
    return summaries, [
        ScoreDifference(names[one], names[other], difference, verdict_of(difference, margin))
        for (one, other), difference in zip(pairs, found, strict=True)
    ]


def read_losses(path: Path, models: Sequence[str]) -> Mapping[str, float]:
    """Returns test losses by model, from a JSON object, or from the newest ``evaluations/loss-*.json`` of runs.

    Args:
        path: a JSON file ``{"MODEL": loss}``, or a folder of runs that have the models' names.

    Raises:
        UsageError: there is no loss of one of the models.
        DataError: a file cannot be read, or a loss is no finite number.
    """
    if path.is_dir():
        values = _losses_of_runs(path, models)
    elif path.is_file():
        values = read_json_object(path)
    else:
        raise UsageError(f"--losses {path}: no such file or folder")
    losses = {}
    for model in models:
        if model not in values:
            raise UsageError(f"--losses {path}: has no loss of '{model}' (it has {', '.join(values) or 'none'})")
        loss = to_float(values[model])
        if loss is None or not math.isfinite(loss):
            raise DataError(f"--losses {path}: the loss of '{model}' is {values[model]!r}, expected a number")
        losses[model] = loss
    return losses


def _losses_of_runs(runs: Path, models: Sequence[str]) -> dict[str, Any]:
    found = {model: read_json_object(_newest_loss(runs, model)) for model in models}
    first = models[0]
    for model, evaluation in found.items():
        if changed := [key for key in MEASURED if evaluation.get(key) != found[first].get(key)]:
            raise UsageError(
                f"--losses {runs}: the losses of '{first}' and '{model}' were measured on different text "
                f"({changed[0]} {found[first].get(changed[0])} and {evaluation.get(changed[0])}); run "
                "'fromscratch eval loss' on both in the same way"
            )
    return {model: evaluation.get("loss") for model, evaluation in found.items()}


def _newest_loss(runs: Path, model: str) -> Path:
    found = sorted((runs / model / "evaluations").glob("loss-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise UsageError(
            f"--losses {runs}: {runs / model} has no evaluation of its loss; run 'fromscratch eval loss', or give a "
            'JSON file {"MODEL": loss}'
        )
    return found[-1]
