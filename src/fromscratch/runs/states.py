"""States of a run, events, and outcomes of a step; the files of a run hold these values."""

from enum import StrEnum
from typing import Any


class RunState(StrEnum):
    """The state of a run; the last two are never written, only found by a reader."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    """``status.json`` says running, but no process holds the lock: the process was killed."""
    UNKNOWN = "unknown"
    """``status.json`` cannot be read."""


ENDED = (RunState.DONE, RunState.STOPPED, RunState.FAILED, RunState.DIVERGED)


class Event(StrEnum):
    """The ``event`` of a line in ``events.jsonl``; each comment lists the line's other keys.

    Each line also has ``at``, the instant, ISO 8601 in UTC. Earlier versions wrote none.
    """

    STARTED = "started"  # step, identity, seed
    RESUMED = "resumed"  # step, identity, seed
    PARENT = "parent"  # source, step and content of the model that train.start_from names
    CHECKPOINT = "checkpoint"  # step, best, bytes, stall_seconds, write_seconds
    CHECKPOINT_FAILED = "checkpoint-failed"  # step, reason
    CHECKPOINT_SKIPPED = "checkpoint-skipped"  # reason: it is damaged, the resume takes an older one
    CHECKPOINT_RECOVERED = "checkpoint-recovered"  # name
    LINK_IGNORED = "link-ignored"  # reason
    LOCK_TAKEN_OVER = "lock-taken-over"
    CONFIG_CHANGED = "config-changed"  # changes, identities
    MACHINE_CHANGED = "machine-changed"  # earlier: the machine.json of the sessions before
    MASKS_CHANGED = "masks-changed"  # step, earlier, now: versions of the dropout masks
    EVALUATION = (
        "evaluation"  # step, loss; epoch of a run in epochs; loss_raw, loss_ema, loss_tail with averages of weights
    )
    SAMPLE = "sample"  # step, text
    HEAD_UNTIED = "head-untied"  # step, parameters: of the model from then on
    NONFINITE = "nonfinite"  # step, outcome, in_a_row
    SPIKE = "spike"  # step, loss
    ROLLBACK = "rollback"  # step, to_step, skipped_batches
    ROLLBACK_IMPOSSIBLE = "rollback-impossible"  # step, reason
    SMALLER_MICRO_BATCH = "smaller-micro-batch"  # step, pieces
    STOPPED_EARLY = "stopped-early"  # step, best_step, best_loss
    SIGNAL = "signal"  # step, signal
    DONE = "done"  # step
    FAILED = "failed"  # step, reason
    DIVERGED = "diverged"  # step, reason


class StepOutcome(StrEnum):
    """The ``outcome`` of a line in ``metrics.jsonl``."""

    NORMAL = "normal"
    CLIPPED = "clipped"
    INFINITE_NORM = "infinite-norm"
    NONFINITE = "nonfinite"
    SCALE_OVERFLOW = "scale-overflow"
    SPIKE = "spike"


def losses_by_weights(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The held-out losses of an ``evaluation`` by the weights they belong to; empty without averages of the weights."""
    prefix = "loss_"
    return {key.removeprefix(prefix): loss for key, loss in evaluation.items() if key.startswith(prefix)}
