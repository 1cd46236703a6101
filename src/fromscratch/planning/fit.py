"""Finds the largest micro-batch that fits this machine's memory, and the fastest one.

Peak memory is linear in the micro-batch: a fixed part (weights, gradients, optimiser state) plus the
activations of each sequence. Two small memory probes determine the line. The line predicts the largest
micro-batch, and further probes confirm or correct it. A probe runs training steps with accumulated
gradients and optimiser state, then an evaluation batch. It runs in a new process, so that it inherits
no memory from another probe, and running out of memory is a result.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import FromScratchError
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import Hardware
from fromscratch.planning.bench import OUT_OF_MEMORY, Case, Measurement, Workload, run_worker

MIN_GROWTH = 0.05  # relative to the first probe's memory; the allocator's variation is smaller
GROWTH_FACTOR = 4  # ratio of the sizes of consecutive first probes
MAX_FIRST_PROBES = 8
MAX_CORRECTIONS = 12
STEPS = 3  # timed steps per probe, after the warm-up
MAX_SECONDS = 5.0  # time limit for the steps of a probe
HALVINGS = 2  # of the largest useful size; the speed of these sizes is measured too
FREE_MEMORY_FRACTION = 0.92  # the rest is a reserve for fragmentation and, on a CPU, for other programs


class DoesNotFitError(FromScratchError):
    """Not even one sequence fits."""


@dataclass(frozen=True)
class Probe:
    """The result of a memory probe: training steps at one micro-batch size."""

    micro_batch: int
    fits: bool
    """Whether the peak memory stayed within the budget."""
    peak_memory_bytes: int | None
    """None if memory ran out."""
    tokens_per_second: float | None

    def describe(self) -> str:
        """Returns the probe as one line of text."""
        if self.peak_memory_bytes is None:
            return f"micro-batch {self.micro_batch}: out of memory"
        verdict = "" if self.fits else ", over the memory budget"
        speed = f"{self.tokens_per_second:,.0f} tokens/s, " if self.tokens_per_second else ""
        return f"micro-batch {self.micro_batch}: {speed}{self.peak_memory_bytes / 2**20:,.0f} MiB{verdict}"


@dataclass(frozen=True)
class MemoryLine:
    """Peak memory = fixed_bytes + micro-batch x bytes_per_sequence."""

    fixed_bytes: float
    bytes_per_sequence: float

    @classmethod
    def through(cls, probes: list[Probe]) -> "MemoryLine":
        """Returns the line through the two largest probes of known memory."""
        known = sorted((p.micro_batch, p.peak_memory_bytes) for p in probes if p.peak_memory_bytes is not None)
        (small, small_bytes), (large, large_bytes) = known[-2:]
        slope = (large_bytes - small_bytes) / (large - small)
        return cls(large_bytes - slope * large, slope)

    def max_sequences(self, budget_bytes: int) -> int | None:
        """Returns the largest micro-batch within a budget, or None if memory does not grow."""
        if self.bytes_per_sequence <= 0:
            return None
        return int((budget_bytes - self.fixed_bytes) // self.bytes_per_sequence)


@dataclass(frozen=True)
class Fit:
    """The result of ``find_fit``."""

    largest: int
    """The largest micro-batch that fits; on a GPU at most the local batch."""
    fastest: int
    """The micro-batch of the highest speed, among those of at most the local batch."""
    tokens_per_second: float
    line: MemoryLine
    budget_bytes: int
    probes: list[Probe]
    """All probes, in order."""


def find_fit(probe: Callable[[int], Probe], *, budget_bytes: int, local_batch: int, share_first: bool = False) -> Fit:
    """Searches for the largest and the fastest micro-batch with few probes.

    Args:
        probe: runs a memory probe of a micro-batch size.
        local_batch: sequences of the global batch per process; larger micro-batches have no use.
        share_first: whether to begin with ``local_batch``. If it fits, half of it is the only other probe, and no
            larger size is tried. For devices with memory of their own, where too large a size harms nothing else.

    Raises:
        DoesNotFitError: not even one sequence fits.
    """
    search = _Search(probe, budget_bytes)
    if share_first and search.probe(local_batch).fits:
        search.probe(max(1, local_batch // 2))
        return _best_of(search, largest=local_batch, local_batch=local_batch)
    search.probe_first_sizes()
    largest = search.find_largest()
    limit = min(largest, local_batch)
    for size in dict.fromkeys(max(1, limit >> halvings) for halvings in range(HALVINGS + 1)):
        search.probe(size)
    return _best_of(search, largest=largest, local_batch=local_batch)


def _best_of(search: "_Search", *, largest: int, local_batch: int) -> Fit:
    """Returns the fastest useful probe of a search."""
    probes = list(search.probes.values())
    useful = [p for p in probes if p.fits and p.micro_batch <= local_batch and p.tokens_per_second]
    best = max(useful, key=lambda p: p.tokens_per_second or 0.0)
    line = MemoryLine.through(probes) if len(search.known) > 1 else MemoryLine(0.0, 0.0)
    return Fit(largest, best.micro_batch, best.tokens_per_second or 0.0, line, search.budget_bytes, probes)


class _Search:
    """Probes each size at most once."""

    def __init__(self, probe: Callable[[int], Probe], budget_bytes: int) -> None:
        self._probe = probe
        self.budget_bytes = budget_bytes
        self.probes: dict[int, Probe] = {}

    def probe(self, size: int) -> Probe:
        if size not in self.probes:
            self.probes[size] = self._probe(size)
        return self.probes[size]

    @property
    def known(self) -> list[Probe]:
        """The probes that did not run out of memory."""
        return [p for p in self.probes.values() if p.peak_memory_bytes is not None]

    def probe_first_sizes(self) -> None:
        """Probes one sequence, then larger sizes until memory clearly grows. Raises DoesNotFitError."""
        one = self.probe(1)
        if not one.fits:
            raise DoesNotFitError(
                f"not even one sequence fits into {self.budget_bytes / 2**20:,.0f} MiB; use "
                "--activation-checkpointing, a shorter model.context_length, or a smaller model"
            )
        min_bytes = (1 + MIN_GROWTH) * (one.peak_memory_bytes or 0)
        for power in range(1, MAX_FIRST_PROBES + 1):
            probe = self.probe(GROWTH_FACTOR**power)
            if not probe.fits or (probe.peak_memory_bytes or 0) > min_bytes:
                return

    def find_largest(self) -> int:
        """Returns the largest size that fits, or one less: stops when two more sequences do not fit."""
        for _ in range(MAX_CORRECTIONS):
            fitting = max(size for size, p in self.probes.items() if p.fits)
            failing = min((size for size, p in self.probes.items() if not p.fits), default=None)
            if failing is not None and failing - fitting <= 2:
                break
            self.probe(self._next_size(fitting, failing))
        return max(size for size, p in self.probes.items() if p.fits)

    def _next_size(self, fitting: int, failing: int | None) -> int:
        """Returns the size that the line predicts, but at least two more than the largest that fits."""
        line = MemoryLine.through(self.known) if len(self.known) > 1 else None
        predicted = line.max_sequences(self.budget_bytes) if line else None
        size = max(fitting * GROWTH_FACTOR if predicted is None else predicted, fitting + 2)
        if failing is None or size < failing:
            return size
        return round(math.sqrt(fitting * failing))  # the prediction was too large


def probe_in_process(
    workload: Workload, hardware: Hardware, acceleration: Acceleration, *, budget_bytes: int
) -> Callable[[int], Probe]:
    """Returns a function that probes a micro-batch with the engine's training steps in a new process."""

    def probe(micro_batch: int) -> Probe:
        case = Case(
            micro_batch,
            workload.train.precision,
            compile=acceleration.compile,
            activation_checkpointing=acceleration.activation_checkpointing,
        )
        measurement = Measurement(case)
        run_worker(workload, measurement, hardware, STEPS, max_seconds=MAX_SECONDS, as_memory_probe=True)
        if measurement.error is not None and not measurement.error.startswith(OUT_OF_MEMORY):
            raise FromScratchError(f"a probe with micro-batch {micro_batch} failed: {measurement.error}")
        peak = measurement.peak_memory_bytes if measurement.error is None else None
        seconds = sorted(measurement.step_seconds)
        speed = micro_batch * workload.model.context_length / seconds[len(seconds) // 2] if seconds else None
        return Probe(micro_batch, peak is not None and peak <= budget_bytes, peak, speed)

    return probe


def memory_budget_bytes(hardware: Hardware) -> int:
    """Returns the memory that training may use: most of the memory that is free now on the device."""
    if hardware.device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(hardware.device)
    else:
        free = _available_memory_bytes()
    return int(free * FREE_MEMORY_FRACTION)


def _available_memory_bytes() -> int:
    """Returns the main memory that is available without swapping, or half of all memory if that is unknown."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
