"""How fast this machine trains a model: micro-batch x precision x compile, each in a process of its own.

A process of its own, because memory that one measurement leaves behind, or the kernels it has
compiled, would count for the next. Rounds are interleaved, so that what else the machine does falls
on all alike; the figures are medians.
"""

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.config.train import TrainConfig
from fromscratch.errors import UsageError
from fromscratch.machine.hardware import Hardware
from fromscratch.machine.memory import speaks_of_memory
from fromscratch.machine.precision import Precision
from fromscratch.models.costs import model_costs

ENGINE, REFERENCE = "engine", "reference"
OUT_OF_MEMORY = "out of memory"
WORKER = [sys.executable, "-m", "fromscratch.planning.bench_worker"]
PEAK_SIZE = 2_048  # of the square matrices whose product measures a CPU's peak: large enough to fill both caches
PEAK_REPEATS = 5


@dataclass(frozen=True)
class Case:
    """One way to train."""

    micro_batch: int
    precision: str
    compile: bool = False
    recipe: str = ENGINE
    """``engine``, or ``reference``: explicit attention, eager, an unfused optimiser, full logits."""
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class Workload:
    """What is trained: a model, with the optimiser and the clip of a run file. The tokens are random."""

    model: ModelConfig
    train: TrainConfig

    @property
    def flops_per_token(self) -> int:
        return model_costs(self.model).training_flops_per_token

    @property
    def parameters(self) -> int:
        return model_costs(self.model).parameters


@dataclass
class Measurement:
    """Steps of one case; ``error`` says why there are none."""

    case: Case
    step_seconds: list[float] = field(default_factory=list)
    first_step_seconds: float | None = None
    """Compilation included."""
    peak_memory_bytes: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    recipe: str
    precision: str
    compile: bool
    micro_batch: int
    tokens_per_second: float | None
    mfu: float | None
    """Model FLOP/s over the device's peak; None where the peak is unknown."""
    peak_memory_bytes: int | None
    step_seconds_p10: float | None
    step_seconds_p50: float | None
    step_seconds_p90: float | None
    first_step_seconds: float | None
    error: str | None


def cases_for(*, micro_batches: Iterable[int], precisions: Iterable[str], compiled: Iterable[bool]) -> list[Case]:
    """Every combination, once."""
    combinations = ((m, p, c) for p in precisions for c in compiled for m in micro_batches)
    return list(dict.fromkeys(Case(m, p, c) for m, p, c in combinations))


def reference_cases(hardware: Hardware, micro_batches: Iterable[int]) -> list[Case]:
    """The plain recipe: fp16 autocast on a GPU, fp32 on a CPU."""
    precision = "fp32" if hardware.device.type == "cpu" else "fp16"
    return [Case(micro_batch, precision, recipe=REFERENCE) for micro_batch in dict.fromkeys(micro_batches)]


def measure(
    workload: Workload,
    cases: list[Case],
    hardware: Hardware,
    *,
    steps: int,
    rounds: int = 1,
    peak: "PeakFlops | None" = None,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Measurement]:
    """Runs every case, in turns, ``rounds`` times ``steps`` steps. A case that failed is not tried again.

    Args:
        peak: is sampled before each turn, so that it has seen the machine at its best if a case has.
    """
    measurements = [Measurement(case) for case in cases]
    for number in range(rounds):
        for measurement in measurements:
            if measurement.error is None:
                say(f"round {number + 1} of {rounds}: {_describe(measurement.case)}")
                if peak is not None:
                    peak.sample(measurement.case.precision)
                ask_worker(workload, measurement, hardware, steps)
    return measurements


def _describe(case: Case) -> str:
    compiled = "compiled" if case.compile else "eager"
    return f"{case.recipe}, {case.precision}, {compiled}, micro-batch {case.micro_batch}"


def ask_worker(
    workload: Workload,
    measurement: Measurement,
    hardware: Hardware,
    steps: int,
    *,
    most_seconds: float = float("inf"),
    as_in_a_run: bool = False,
) -> None:
    """Runs steps of a case in a process of its own and adds what they took to the measurement.

    Args:
        most_seconds: takes no further step after so long, but one to warm up and one that counts.
        as_in_a_run: whether the process also holds what a run does beside a step: the gradients of earlier
            pieces, and a batch that is evaluated.
    """
    request = {
        "model": workload.model.model_dump(mode="json", exclude_none=True),
        "train": workload.train.model_dump(mode="json", exclude_none=True),
        "case": asdict(measurement.case),
        "device": str(hardware.device),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "most_seconds": min(most_seconds, sys.float_info.max),
        "as_in_a_run": as_in_a_run,
    }
    done = subprocess.run(WORKER, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        measurement.error = _why_it_failed(done.returncode, done.stderr)
        return
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measurement.error = answer["error"]
    measurement.step_seconds += answer["step_seconds"]
    measurement.first_step_seconds = answer["first_step_seconds"]
    measurement.peak_memory_bytes = max(measurement.peak_memory_bytes or 0, answer["peak_memory_bytes"])


def _why_it_failed(code: int, messages: str) -> str:
    """In a few words; where memory ran out these are OUT_OF_MEMORY, whatever was said after it."""
    if code == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY} (the system ended the process)"
    if speaks_of_memory(messages):
        return OUT_OF_MEMORY
    lines = messages.strip().splitlines()
    return lines[-1][:200] if lines else f"ended with exit code {code}"


def summarise(measurement: Measurement, workload: Workload, peak_flops: Callable[[str], float | None]) -> Row:
    """The figures of one case; what could not be measured is None."""
    case, seconds = measurement.case, sorted(measurement.step_seconds)
    speed = mfu = None
    if seconds:
        speed = case.micro_batch * workload.model.context_length / statistics.median(seconds)
        peak = peak_flops(case.precision)
        mfu = speed * workload.flops_per_token / peak if peak else None
    return Row(
        recipe=case.recipe,
        precision=case.precision,
        compile=case.compile,
        micro_batch=case.micro_batch,
        tokens_per_second=speed,
        mfu=mfu,
        peak_memory_bytes=measurement.peak_memory_bytes if seconds else None,
        step_seconds_p10=_percentile(seconds, 0.1),
        step_seconds_p50=statistics.median(seconds) if seconds else None,
        step_seconds_p90=_percentile(seconds, 0.9),
        first_step_seconds=measurement.first_step_seconds if seconds else None,
        error=measurement.error,
    )


def _percentile(ordered: list[float], share: float) -> float | None:
    """The value below which a share of the sorted values lies (nearest rank)."""
    return ordered[round(share * (len(ordered) - 1))] if ordered else None


def fastest(rows: Iterable[Row], precision: str) -> Row | None:
    """The engine's fastest line of a precision."""
    known = [r for r in rows if r.recipe == ENGINE and r.precision == precision and r.tokens_per_second]
    return max(known, key=lambda row: row.tokens_per_second or 0.0, default=None)


class PeakFlops:
    """The device's peak by precision: from the table for a GPU, measured with a matrix product on a CPU."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._highest: dict[str, float] = {}

    def sample(self, precision: str) -> None:
        """Measures a CPU once more; the highest counts, because a busy machine is slower now and faster then."""
        if self._hardware.device.type == "cpu":
            self._highest[precision] = max(measured_peak_flops(precision), self._highest.get(precision, 0.0))

    def __call__(self, precision: str) -> float | None:
        """FLOP/s, or None where nobody has written it down."""
        if self._hardware.device.type == "cpu" and precision not in self._highest:
            self.sample(precision)
        return self._highest.get(precision) or self._hardware.peak_flops(precision)


def measured_peak_flops(precision: str) -> float:
    """FLOP/s of the fastest of a few large matrix products on the CPU."""
    import time

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    best = float("inf")
    with Precision(precision, torch.device("cpu")).products():
        for _ in range(PEAK_REPEATS):
            begin = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - begin)
    return 2 * PEAK_SIZE**3 / best


def default_micro_batches(global_batch: int, largest: int) -> list[int]:
    """Powers of two up to what the engine would choose by itself, and that one."""
    powers = [2**n for n in range(largest.bit_length()) if 2**n <= min(largest, global_batch)]
    return list(dict.fromkeys([*powers, min(largest, global_batch)]))


def check_precisions(precisions: Iterable[str]) -> None:
    """Raises UsageError for a precision that is none."""
    for precision in precisions:
        if precision not in ("fp32", "tf32", "bf16", "fp16"):
            raise UsageError(f"--precision {precision}: must be fp32, tf32, bf16 or fp16")
