"""Measures training speed on this machine by micro-batch, precision and compilation.

Each measurement runs in a new process. In a shared process, memory and compiled kernels of one
measurement would change the next. The cases are interleaved in rounds, so that other load on the
machine affects all of them equally. The reported figures are medians.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fromscratch.config.model import GPTConfig, ModelConfig
from fromscratch.config.run import RunConfig
from fromscratch.config.train import TrainConfig
from fromscratch.errors import UsageError
from fromscratch.machine.hardware import Hardware
from fromscratch.machine.memory import is_memory_message
from fromscratch.models.costs import model_costs
from fromscratch.planning.peak_flops import PeakFlops

ENGINE, REFERENCE = "engine", "reference"
OUT_OF_MEMORY = "out of memory"
WORKER = [sys.executable, "-m", "fromscratch.planning.bench_worker"]


@dataclass(frozen=True)
class Case:
    """One way to train: the variables of a measurement."""

    micro_batch: int
    precision: str
    compile: bool = False
    recipe: str = ENGINE
    """``engine`` or ``reference`` (explicit attention, eager, unfused optimiser, full logits)."""
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class Workload:
    """The model to train, and the optimiser and gradient clipping of a run file. The tokens are random."""

    model: ModelConfig
    train: TrainConfig
    document_mask: bool = False
    """Whether attention has a document mask, which costs time and memory."""

    @classmethod
    def of(cls, config: RunConfig) -> "Workload":
        """The workload of a run file."""
        return cls(config.model, config.train, bool(config.data.document_mask))

    def key(self) -> list[Any]:
        """What determines speed and memory, apart from the machine; strict JSON."""
        model = self.largest_model.model_dump(mode="json", exclude={"preset", "init"})
        train = self.train.model_dump(mode="json", include={"precision", "optimizer", "clip"})
        averages = sorted(self.train.average_rules())  # none, as before there were any, adds nothing
        return [model, train, *averages, *(["document_mask"] if self.document_mask else [])]

    @property
    def largest_model(self) -> ModelConfig:
        """The model as it is when it takes the most memory."""
        return self.train.last_model(self.model)

    @property
    def flops_per_token(self) -> int:
        return model_costs(self.model).training_flops_per_token

    @property
    def parameters(self) -> int:
        return model_costs(self.model).parameters


@dataclass
class Measurement:
    """Step times of one case; ``error`` is the reason if the case failed."""

    case: Case
    step_seconds: list[float] = field(default_factory=list)
    first_step_seconds: float | None = None
    """Includes compilation."""
    peak_memory_bytes: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of the speed table."""

    recipe: str
    precision: str
    compile: bool
    micro_batch: int
    tokens_per_second: float | None
    mfu: float | None
    """Model FLOP/s divided by the device's peak; None if the peak is unknown."""
    peak_memory_bytes: int | None
    step_seconds_p10: float | None
    step_seconds_p50: float | None
    step_seconds_p90: float | None
    first_step_seconds: float | None
    error: str | None


def cases_for(*, micro_batches: Iterable[int], precisions: Iterable[str], compiled: Iterable[bool]) -> list[Case]:
    """Returns every combination once."""
    combinations = ((m, p, c) for p in precisions for c in compiled for m in micro_batches)
    return list(dict.fromkeys(Case(m, p, c) for m, p, c in combinations))


def gpu_cases(*, micro_batches: list[int], precision: str, can_compile: bool) -> list[Case]:
    """Returns few cases, because each compiles anew: the two largest sizes, and the largest without compilation."""
    sizes = sorted(micro_batches)[-2:]
    cases = [Case(size, precision, compile=can_compile) for size in sizes]
    return [*cases, Case(sizes[-1], precision)] if can_compile else cases


def reference_cases(model: ModelConfig, hardware: Hardware, micro_batches: Iterable[int]) -> list[Case]:
    """Returns the cases of the reference recipe: fp16 autocast on a GPU, fp32 on a CPU.

    Raises:
        UsageError: there is no such recipe for the kind of model.
    """
    if not isinstance(model, GPTConfig):
        raise UsageError(f"--reference: models of kind {model.kind!r} have no reference recipe; leave it out")
    precision = "fp32" if hardware.device.type == "cpu" else "fp16"
    return [Case(micro_batch, precision, recipe=REFERENCE) for micro_batch in dict.fromkeys(micro_batches)]


def measure(
    workload: Workload,
    cases: list[Case],
    hardware: Hardware,
    *,
    steps: int,
    rounds: int = 1,
    peak: PeakFlops | None = None,
    on_progress: Callable[[str], None] = lambda _line: None,
) -> list[Measurement]:
    """Runs ``rounds`` rounds of all cases, ``steps`` steps per case and round. Skips cases that failed before.

    Args:
        peak: is sampled before each case, because on a busy machine the measured peak varies with the load.
        on_progress: receives a line before each case.
    """
    measurements = [Measurement(case) for case in cases]
    for number in range(rounds):
        for measurement in measurements:
            if measurement.error is None:
                on_progress(f"round {number + 1} of {rounds}: {_describe(measurement.case)}")
                if peak is not None:
                    peak.sample(measurement.case.precision)
                run_worker(workload, measurement, hardware, steps)
    return measurements


def _describe(case: Case) -> str:
    compiled = "compiled" if case.compile else "eager"
    return f"{case.recipe}, {case.precision}, {compiled}, micro-batch {case.micro_batch}"


def run_worker(
    workload: Workload,
    measurement: Measurement,
    hardware: Hardware,
    steps: int,
    *,
    max_seconds: float = float("inf"),
    as_memory_probe: bool = False,
) -> None:
    """Runs steps of a case in a new process and adds their times to the measurement.

    Args:
        max_seconds: time limit. The process takes at least one warm-up step and one timed step.
        as_memory_probe: whether the process also allocates the other memory of a run: accumulated gradients
            and the activations of an evaluation batch.
    """
    request = {
        "model": workload.largest_model.model_dump(mode="json", exclude={"preset"}, exclude_none=True),
        "train": workload.train.model_dump(mode="json", exclude_none=True),
        "document_mask": workload.document_mask,
        "case": asdict(measurement.case),
        "device": str(hardware.device),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "max_seconds": min(max_seconds, sys.float_info.max),
        "as_memory_probe": as_memory_probe,
        "parent": os.getpid(),
    }
    done = subprocess.run(WORKER, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        measurement.error = _failure_reason(done.returncode, done.stderr)
        return
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measurement.error = answer["error"]
    measurement.step_seconds += answer["step_seconds"]
    measurement.first_step_seconds = answer["first_step_seconds"]
    measurement.peak_memory_bytes = max(measurement.peak_memory_bytes or 0, answer["peak_memory_bytes"])


def _failure_reason(code: int, messages: str) -> str:
    """Returns OUT_OF_MEMORY if any message says so, else the last line of the messages."""
    if code == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY} (the system killed the process)"
    if is_memory_message(messages):
        return OUT_OF_MEMORY
    lines = messages.strip().splitlines()
    return lines[-1][:200] if lines else f"ended with exit code {code}"


def summarise(measurement: Measurement, workload: Workload, peak_flops: Callable[[str], float | None]) -> Row:
    """Computes the table row of one case; None for unknown values."""
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


def _percentile(ordered: list[float], fraction: float) -> float | None:
    """Returns the percentile of sorted values, by nearest rank."""
    return ordered[round(fraction * (len(ordered) - 1))] if ordered else None


def fastest(rows: Iterable[Row], precision: str) -> Row | None:
    """Returns the fastest row of the engine recipe at a precision."""
    known = [r for r in rows if r.recipe == ENGINE and r.precision == precision and r.tokens_per_second]
    return max(known, key=lambda row: row.tokens_per_second or 0.0, default=None)


def default_micro_batches(global_batch: int, max_size: int) -> list[int]:
    """Returns the powers of two up to the smaller of both arguments, and that number itself."""
    max_size = min(max_size, global_batch)
    return list(dict.fromkeys([*(2**n for n in range(max_size.bit_length())), max_size]))
