"""The largest micro-batch that fits this machine's memory, and the fastest one.

Memory grows with the micro-batch in a straight line: a fixed part (weights, gradients, optimiser
state) and the activations of each sequence. Two small probes give the line, the line predicts the
largest micro-batch, and further probes, real steps beside optimiser state, accumulated gradients
and an evaluation, confirm or correct it. Every probe has a process of its own, so that none inherits
another's memory, and running out of it is an answer.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import FromScratchError
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import Hardware
from fromscratch.planning.bench import OUT_OF_MEMORY, Case, Measurement, Workload, ask_worker

LEAST_GROWTH = 0.05  # of the first probe's memory: less cannot be told from what the allocator does
FACTOR = 4  # between the first probes
MOST_PROBES_UPWARDS = 8
MOST_CORRECTIONS = 12
STEPS = 3  # timed steps per probe, after those that warm up
SECONDS = 5.0  # after which a probe takes no further step
HALVINGS = 2  # of the largest useful size, whose speeds are measured too
SHARE_OF_FREE_MEMORY = 0.92  # the rest is left to fragmentation and, on a CPU, to the rest of the computer


@dataclass(frozen=True)
class Probe:
    """A micro-batch that was tried."""

    micro_batch: int
    fits: bool
    """Whether its peak stayed within the budget."""
    peak_memory_bytes: int | None
    """None where memory ran out."""
    tokens_per_second: float | None

    def describe(self) -> str:
        """The probe in one line."""
        if self.peak_memory_bytes is None:
            return f"micro-batch {self.micro_batch}: out of memory"
        verdict = "" if self.fits else ", more than there is"
        speed = f"{self.tokens_per_second:,.0f} tokens/s, " if self.tokens_per_second else ""
        return f"micro-batch {self.micro_batch}: {speed}{self.peak_memory_bytes / 2**20:,.0f} MiB{verdict}"


@dataclass(frozen=True)
class MemoryLine:
    """Peak memory = fixed + micro-batch x per sequence."""

    fixed_bytes: float
    bytes_per_sequence: float

    @classmethod
    def through(cls, probes: list[Probe]) -> "MemoryLine":
        """The line through the two largest probes whose memory is known."""
        known = sorted((p.micro_batch, p.peak_memory_bytes) for p in probes if p.peak_memory_bytes is not None)
        (small, small_bytes), (large, large_bytes) = known[-2:]
        slope = (large_bytes - small_bytes) / (large - small)
        return cls(large_bytes - slope * large, slope)

    def largest(self, budget_bytes: int) -> int | None:
        """Most sequences within a budget; None where memory does not grow with them."""
        if self.bytes_per_sequence <= 0:
            return None
        return int((budget_bytes - self.fixed_bytes) // self.bytes_per_sequence)


@dataclass(frozen=True)
class Fit:
    """What ``find_fit`` found."""

    largest: int
    """Most sequences in one forward and backward pass."""
    fastest: int
    """Sequences with the most tokens per second, of those that a process's share of the global batch has."""
    tokens_per_second: float
    line: MemoryLine
    budget_bytes: int
    probes: list[Probe]
    """Everything that was tried, in order."""


def find_fit(probe: Callable[[int], Probe], *, budget_bytes: int, share: int) -> Fit:
    """Searches with as few probes as it can.

    Args:
        probe: tries a micro-batch.
        share: sequences of the global batch that one process has; larger micro-batches are of no use to it.

    Raises:
        FromScratchError: not even one sequence fits.
    """
    search = _Search(probe, budget_bytes)
    search.first_line()
    largest = search.correct()
    limit = min(largest, share)
    for size in dict.fromkeys(max(1, limit >> halvings) for halvings in range(HALVINGS + 1)):
        search.at(size)
    useful = [p for p in search.tried.values() if p.fits and p.micro_batch <= share and p.tokens_per_second]
    best = max(useful, key=lambda p: p.tokens_per_second or 0.0)
    line = MemoryLine.through(list(search.tried.values())) if len(search.known) > 1 else MemoryLine(0.0, 0.0)
    return Fit(
        largest, best.micro_batch, best.tokens_per_second or 0.0, line, budget_bytes, list(search.tried.values())
    )


class _Search:
    """Probes by size; none is tried twice."""

    def __init__(self, probe: Callable[[int], Probe], budget_bytes: int) -> None:
        self._probe = probe
        self._budget_bytes = budget_bytes
        self.tried: dict[int, Probe] = {}

    def at(self, size: int) -> Probe:
        if size not in self.tried:
            self.tried[size] = self._probe(size)
        return self.tried[size]

    @property
    def known(self) -> list[Probe]:
        return [p for p in self.tried.values() if p.peak_memory_bytes is not None]

    def first_line(self) -> None:
        """One sequence, and the smallest number whose memory is clearly more. Raises FromScratchError."""
        one = self.at(1)
        if not one.fits:
            raise FromScratchError(
                f"not even one sequence fits into {self._budget_bytes / 2**20:,.0f} MiB; use "
                "--activation-checkpointing, a shorter model.context_length, or a smaller model"
            )
        least = (1 + LEAST_GROWTH) * (one.peak_memory_bytes or 0)
        for power in range(1, MOST_PROBES_UPWARDS + 1):
            probe = self.at(FACTOR**power)
            if not probe.fits or (probe.peak_memory_bytes or 0) > least:
                return

    def correct(self) -> int:
        """The largest size that fits, to one sequence: two more were tried and did not."""
        for _ in range(MOST_CORRECTIONS):
            fitting = max(size for size, p in self.tried.items() if p.fits)
            failing = min((size for size, p in self.tried.items() if not p.fits), default=None)
            if failing is not None and failing - fitting <= 2:
                break
            self.at(self._guess(fitting, failing))
        return max(size for size, p in self.tried.items() if p.fits)

    def _guess(self, fitting: int, failing: int | None) -> int:
        """What the line predicts, but never less than a step of two beyond what fits."""
        line = MemoryLine.through(self.known) if len(self.known) > 1 else None
        predicted = line.largest(self._budget_bytes) if line else None
        guess = max(fitting * FACTOR if predicted is None else predicted, fitting + 2)
        if failing is None:
            return guess
        return guess if guess < failing else round(math.sqrt(fitting * failing))  # the line promised too much


def probe_in_a_process(
    workload: Workload, hardware: Hardware, acceleration: Acceleration, *, budget_bytes: int
) -> Callable[[int], Probe]:
    """Tries micro-batches with the engine's own training steps, each in a process of its own."""

    def probe(micro_batch: int) -> Probe:
        case = Case(
            micro_batch,
            workload.train.precision,
            compile=acceleration.compile,
            activation_checkpointing=acceleration.activation_checkpointing,
        )
        measurement = Measurement(case)
        ask_worker(workload, measurement, hardware, STEPS, most_seconds=SECONDS, as_in_a_run=True)
        if measurement.error is not None and not measurement.error.startswith(OUT_OF_MEMORY):
            raise FromScratchError(f"a probe with micro-batch {micro_batch} failed: {measurement.error}")
        peak = measurement.peak_memory_bytes if measurement.error is None else None
        seconds = sorted(measurement.step_seconds)
        speed = micro_batch * workload.model.context_length / seconds[len(seconds) // 2] if seconds else None
        return Probe(micro_batch, peak is not None and peak <= budget_bytes, peak, speed)

    return probe


def memory_budget_bytes(hardware: Hardware) -> int:
    """What a training process may use: most of what is free now, on the accelerator or in the computer."""
    if hardware.device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(hardware.device)
    else:
        free = _available_memory_bytes()
    return int(free * SHARE_OF_FREE_MEMORY)


def _available_memory_bytes() -> int:
    """Memory that programs can get without swapping."""
    facts = Path("/proc/meminfo")
    if facts.is_file():
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
