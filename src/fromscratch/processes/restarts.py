"""torchrun's restarts (``--max-restarts N``): they go on from the last checkpoint, but not for ever.

A run that crashes for a reason of its own crashes at the same place again. Its events tell: sessions
that began at the same step, with no checkpoint gained in between.
"""

import os
from itertools import takewhile

from fromscratch.errors import FromScratchError
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState

MOST_CRASHES = 3
BEGINNINGS = (Event.STARTED, Event.RESUMED)


def restarts() -> int:
    """How often torchrun has restarted these processes; 0 without it."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """Whether torchrun takes every exit code but 0 for a crash, and starts the processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def check_crashes(run: RunDirectory, *, step: int, num_steps: int) -> None:
    """Ends a run that torchrun restarts at ``step`` once more though it never gets on from there.

    Started by hand, it may try again.

    Raises:
        FromScratchError: its last sessions all crashed between this step and the next checkpoint.
    """
    if restarts() == 0:
        return
    events = list(read_records(run.events))
    begun = [event.get("step") for event in events if event.get("event") in BEGINNINGS]
    crashes = len(list(takewhile(lambda begin: begin == step, reversed(begun))))
    if crashes < MOST_CRASHES:
        return
    reasons = [str(event.get("reason")) for event in events if event.get("event") == Event.FAILED]
    reason = (
        f"crashed {crashes} times in a row after step {step} without another checkpoint; not restarted again "
        f"(the last reason on record: {reasons[-1] if reasons else 'none, it was killed'})"
    )
    run.write_status(RunState.FAILED, step=step, num_steps=num_steps, reason=reason)
    raise FromScratchError(f"run {run.path}: {reason}; find the cause, then start it by hand")
