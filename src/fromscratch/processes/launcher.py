"""``--processes N``: torchrun's launcher, inside this process, and what its end means.

torchrun reports every way to end as exit code 1; the run's own status says which it was.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from fromscratch.errors import EXIT_CRASH, EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED, DataError, FromScratchError
from fromscratch.processes.stopping import SIGNALS
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import RunState

LAUNCHED_VARIABLE = "FROMSCRATCH_LAUNCHED"
EXIT_CODES = {RunState.DONE: EXIT_DONE, RunState.STOPPED: EXIT_STOPPED, RunState.DIVERGED: EXIT_DIVERGED}


def is_launched() -> bool:
    """Whether this process is one of those that ``launch`` started."""
    return LAUNCHED_VARIABLE in os.environ


def launch(arguments: list[str], directory: RunDirectory, *, processes: int) -> int:
    """Runs ``fromscratch`` with the arguments in several processes; returns the exit code to pass on.

    Signals are handed to every process.

    Raises:
        FromScratchError: a process failed; the message names its rank, its own output says why.
    """
    try:
        _start(arguments, processes)
    except SignalException:
        pass  # the processes have saved and ended, or their status says that they did not
    except ChildFailedError as error:
        code = exit_code_of(directory, otherwise=EXIT_CRASH)
        if code != EXIT_DIVERGED:
            reason = _who_failed(error)
            _record_failure(directory, reason)
            raise FromScratchError(f"{reason}; the others were stopped, and the same command goes on") from None
        return code
    return exit_code_of(directory, otherwise=EXIT_CRASH)


def launch_measurement(arguments: list[str], *, processes: int) -> int:
    """As ``launch``, for a verb that has no run directory to say how it ended; returns the exit code to pass on."""
    try:
        _start(arguments, processes)
    except SignalException as stopped:
        return 128 + stopped.sigval.value  # as shells report it
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code > 0:
            return code  # the process has said why
        raise FromScratchError(_who_failed(error)) from None
    return EXIT_DONE


def _start(arguments: list[str], processes: int) -> None:
    os.environ[LAUNCHED_VARIABLE] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options = [
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--signals-to-handle={','.join(number.name for number in SIGNALS)}",
        "--no-python",
    ]
    run(parse_args([*options, sys.executable, "-m", "fromscratch", *arguments]))


def exit_code_of(directory: RunDirectory, *, otherwise: int) -> int:
    """The exit code that the run's status stands for."""
    try:
        return EXIT_CODES.get(directory.read_status().state, otherwise)
    except DataError:
        return otherwise


def _who_failed(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}"
    else:
        how = f"failed with exit code {failure.exitcode}"
    return f"the process of rank {rank} {how}"


def _record_failure(directory: RunDirectory, reason: str) -> None:
    """Says so in the status, where the main process was killed before it could."""
    try:
        status = directory.read_status()
    except DataError:
        return
    if status.state == RunState.RUNNING and status.pid is not None and not _is_alive(status.pid):
        directory.write_status(RunState.FAILED, step=status.step or 0, num_steps=status.num_steps or 0, reason=reason)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
