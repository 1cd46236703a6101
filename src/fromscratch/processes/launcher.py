"""``--processes N``: torchrun's launcher in this process, and the exit code of the run.

torchrun reports every failure as exit code 1. The run's status tells a stop from a crash.
"""

import os
import signal
import sys
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from fromscratch.errors import EXIT_CRASH, EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED, DataError, FromScratchError
from fromscratch.processes.parent import LAUNCHED_VARIABLE
from fromscratch.processes.stopping import SIGNALS, stop_signals
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import RunState

EXIT_CODES = {RunState.DONE: EXIT_DONE, RunState.STOPPED: EXIT_STOPPED, RunState.DIVERGED: EXIT_DIVERGED}


def is_launched() -> bool:
    """Whether ``launch`` started this process."""
    return LAUNCHED_VARIABLE in os.environ


def launch(arguments: list[str], directory: RunDirectory, *, processes: int) -> int:
    """Runs ``fromscratch`` with the arguments in several processes; returns the exit code.

    torchrun's agent forwards signals to every process.

    Raises:
        FromScratchError: a process failed; the message names its rank, and the output of that rank says why.
    """
    try:
        _start(arguments, processes)
    except SignalException:
        pass  # the status says whether the processes have saved
    except ChildFailedError as error:
        code = exit_code_of(directory, otherwise=EXIT_CRASH)
        if code != EXIT_DIVERGED:
            reason = _describe_failure(error)
            _record_failure(directory, reason)
            raise FromScratchError(f"{reason}; the others were stopped, and the same command resumes the run") from None
        return code
    return exit_code_of(directory, otherwise=EXIT_CRASH)


def launch_measurement(arguments: list[str], *, processes: int) -> int:
    """As ``launch``, for a verb without a run directory."""
    try:
        _start(arguments, processes)
    except SignalException as signalled:
        return 128 + signalled.sigval.value  # as shells report it
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code > 0:
            return code  # the output of the process says why
        raise FromScratchError(_describe_failure(error)) from None
    return EXIT_DONE


def _start(arguments: list[str], processes: int) -> None:
    os.environ[LAUNCHED_VARIABLE] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options = [
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--signals-to-handle={','.join(number.name for number in SIGNALS)}",
        "--no-python",
    ]
    if signal.SIGHUP in stop_signals():
        signal.signal(signal.SIGHUP, _raise_once)
    run(parse_args([*options, sys.executable, "-m", "fromscratch", *arguments]))


def _raise_once(number: int, _frame: FrameType | None) -> None:
    """Lets torchrun's agent stop the processes, as its own handlers do, and ignores SIGHUP from then on.

    A terminal that closes sends it twice, and a second exception would end the agent before the processes have saved.
    """
    signal.signal(number, signal.SIG_IGN)
    name = signal.Signals(number)
    raise SignalException(f"got {name.name}", sigval=name)


def exit_code_of(directory: RunDirectory, *, otherwise: int) -> int:
    """The exit code for the state in the run's status."""
    try:
        return EXIT_CODES.get(directory.read_status().state, otherwise)
    except DataError:
        return otherwise


def _describe_failure(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}"
    else:
        how = f"failed with exit code {failure.exitcode}"
    return f"the process of rank {rank} {how}"


def _record_failure(directory: RunDirectory, reason: str) -> None:
    """Writes the failure to the status, where the main process was killed before it could."""
    try:
        status = directory.read_status()
    except DataError:
        return
    if status.state == RunState.RUNNING and not directory.holder():
        directory.write_status(RunState.FAILED, step=status.step or 0, num_steps=status.num_steps or 0, reason=reason)
