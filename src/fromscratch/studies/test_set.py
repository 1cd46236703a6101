"""The sealed test set: measured by the report alone, once per run, and every opening is on the record.

Early stopping, tuning and looks use the validation slice. Losses of the test set are kept in the study's record, so a
report that is written again opens nothing.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from fromscratch.config.loading import read_run_config
from fromscratch.data.store import TokenStore
from fromscratch.errors import UsageError
from fromscratch.evaluation.loss import MeasuredLoss, measure_loss
from fromscratch.finetuning.test_loss import instruction_test_loss
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.stores import held_out_store_of, open_named_store
from fromscratch.machine.hardware import find_hardware
from fromscratch.runs.records import to_float
from fromscratch.runs.states import RunState
from fromscratch.studies.definition import CONTROL, Study, TestSlice
from fromscratch.studies.jobs import Job, StudyFolder
from fromscratch.studies.noise import variance_over_test_sets
from fromscratch.studies.results import Losses, classifier_result, validation_losses
from fromscratch.training.held_out import TokenSlice

MIN_TOKENS = 1_000


def open_test_set(folder: StudyFolder, *, device: str | None, on_run: Callable[[str], None]) -> Losses:
    """Returns the test result of every declared run; measures those that are done and not on record yet.

    The final loss on the test slice; of tuned models, the study's measure on the test part of their records.

    Raises:
        UsageError: the store holds too little text for a test set, or it overlaps the validation slice.
    """
    settings = folder.study.config.test
    record: dict[str, Any] = folder.read().get("test", {})
    stopped = folder.stopped_early()
    done = [job for job in folder.jobs() if job.state == RunState.DONE and job.name not in stopped]
    missing = [job for job in done if job.name not in record]
    if missing:
        measured: dict[str, MeasuredLoss] = {}
        for job in missing:
            on_run(job.name)
            if folder.study.measure.is_tuned:
                record[job.name] = {"loss": _measure_tuned(job, folder.study, device)}
            else:
                measured[job.name] = _measure(job, settings, device)
        record |= {name: {"loss": one.report.loss, "tokens": one.report.tokens} for name, one in measured.items()}
        noise = _test_noise(measured, folder)
        folder.append(
            "openings", {"at": datetime.now(UTC).isoformat(timespec="seconds"), "runs": [job.name for job in missing]}
        )
        folder.update(test=record, **({"test_noise": noise} if noise is not None else {}))
    losses = validation_losses(folder)
    for job in done:
        loss = to_float(record[job.name]["loss"])
        losses[job.arm.name][job.seed] = math.nan if loss is None else loss  # JSON has no NaN
    return losses


def _measure_tuned(job: Job, study: Study, device: str | None) -> float:
    """The study's measure of the best checkpoint of a tuning, on the test part of its records."""
    if job.needs_report:
        return classifier_result(job, "test", study)
    return instruction_test_loss(open_model(str(job.current.path), find_hardware(device)))


def _measure(job: Job, settings: TestSlice, device: str | None) -> MeasuredLoss:
    hardware = find_hardware(device)
    loaded = open_model(f"{job.run.path}@latest", hardware)
    store = open_named_store(held_out_store_of(loaded))
    part = _slice(store, settings, job)
    return measure_loss(loaded.model, loaded.tokenizer, part, hardware)


def _slice(store: TokenStore, settings: TestSlice, job: Job) -> TokenSlice:
    """The slice; by default, all that follows the validation slice of the run."""
    evaluation = read_run_config(job.run.config).eval
    split = store.split(settings.split)
    is_same = settings.split == evaluation.split
    start = settings.start if settings.start is not None else evaluation.start + evaluation.tokens + 1 if is_same else 0
    if (
        is_same
        and start < evaluation.start + evaluation.tokens
        and (settings.tokens or split.tokens) + start > evaluation.start
    ):
        raise UsageError(
            f"test: starts at token {start:,}, within the validation slice ({evaluation.start:,} to "
            f"{evaluation.start + evaluation.tokens:,}), which training has seen"
        )
    if split.tokens - start - 1 < MIN_TOKENS:
        raise UsageError(
            f"store {store.path}: split '{split.name}' has {split.tokens:,} tokens, which leaves no test set after the "
            f"validation slice; hold more out ('data prepare --validation'), or lower eval.tokens"
        )
    return TokenSlice.of(split, start=start, tokens=settings.tokens)


def _test_noise(measured: dict[str, MeasuredLoss], folder: StudyFolder) -> float | None:
    """Standard deviation, over test sets of this size, of the difference of an arm's run to the baseline's.

    Arms of another context length cut the text into other sequences, which have no pairs.
    """
    runs = [(job.arm.name, measured[job.name]) for job in folder.jobs() if job.name in measured]
    runs = [(arm, one) for arm, one in runs if math.isfinite(one.report.loss)]
    control = next((one for arm, one in runs if arm == CONTROL), None)
    if control is None:
        return None
    variances = [
        variance_over_test_sets(one.sequence_nats - control.sequence_nats, control.sequence_tokens)
        for arm, one in runs
        if arm != CONTROL and one.sequence_nats.shape == control.sequence_nats.shape
    ]
    return float(np.sqrt(np.mean(variances))) if variances else None
