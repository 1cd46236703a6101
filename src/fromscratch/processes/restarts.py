"""torchrun's restarts (``--max-restarts N``): they resume from the last checkpoint, but not for ever.

torchrun counts restarts, not progress. A run with an error in its data or code crashes at the same step again: its
events show sessions that began at the same step, without a checkpoint in between.
"""

import os
from itertools import takewhile

from fromscratch.errors import FromScratchError
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState

MAX_CRASHES = 3
START_EVENTS = (Event.STARTED, Event.RESUMED)


def restarts() -> int:
    """How often torchrun has restarted this process; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """Whether torchrun restarts the processes after every exit code but 0."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def check_crashes(run: RunDirectory, *, step: int, num_steps: int) -> None:
    """Refuses another restart at ``step`` after several crashes there. A start by hand is never refused.

    Raises:
        FromScratchError: the last sessions all crashed between this step and the next checkpoint.
    """
    if restarts() == 0:
        return
    events = list(read_records(run.events))
    start_steps = [event.get("step") for event in events if event.get("event") in START_EVENTS]
    crashes = len(list(takewhile(lambda start: start == step, reversed(start_steps))))
    if crashes < MAX_CRASHES:
        return
    reasons = [str(event.get("reason")) for event in events if event.get("event") == Event.FAILED]
    reason = (
        f"crashed {crashes} times in a row after step {step} without another checkpoint; not restarted again "
        f"(the last reason on record: {reasons[-1] if reasons else 'none, it was killed'})"
    )
    run.write_status(RunState.FAILED, step=step, num_steps=num_steps, reason=reason)
    raise FromScratchError(f"run {run.path}: {reason}; find the cause, then start it by hand")
