"""The words that run records use: states of a run, events, outcomes of a step. Files store the values."""

from enum import StrEnum


class RunState(StrEnum):
    """The state of a run. ``status.json`` never holds the last two; only a reader can tell them."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    """The status says running, but no process holds the lock: the process was killed."""
    UNKNOWN = "unknown"
    """The status cannot be read."""


ENDED = (RunState.DONE, RunState.STOPPED, RunState.FAILED, RunState.DIVERGED)


class Event(StrEnum):
    """The ``event`` of a line in ``events.jsonl``; the comment lists the line's other keys."""

    STARTED = "started"  # step, identity, seed
    RESUMED = "resumed"  # step, identity, seed
    PARENT = "parent"  # the checkpoint that train.start_from names
    CHECKPOINT = "checkpoint"  # step, size and times of the save
    CHECKPOINT_FAILED = "checkpoint-failed"  # step, reason
    CHECKPOINT_SKIPPED = "checkpoint-skipped"  # reason: damaged, so the resume used an older one
    CHECKPOINT_RECOVERED = "checkpoint-recovered"  # name
    LINK_IGNORED = "link-ignored"  # reason
    LOCK_TAKEN_OVER = "lock-taken-over"
    CONFIG_CHANGED = "config-changed"  # changes, identities
    EVALUATION = "evaluation"  # step, loss
    SAMPLE = "sample"  # step, text
    NONFINITE = "nonfinite"  # step, outcome, in_a_row
    SPIKE = "spike"  # step, loss
    ROLLBACK = "rollback"  # step, to_step, skipped_batches
    ROLLBACK_IMPOSSIBLE = "rollback-impossible"  # step, reason
    SMALLER_MICRO_BATCH = "smaller-micro-batch"  # step, pieces
    SIGNAL = "signal"  # step, signal
    DONE = "done"  # step
    FAILED = "failed"  # step, reason
    DIVERGED = "diverged"  # step, reason
