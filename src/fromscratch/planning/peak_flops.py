"""Peak FLOP/s of a device: from a table for GPUs, measured with matrix products and remembered for CPUs."""

import time
from contextlib import suppress

import torch

from fromscratch.machine.hardware import Hardware
from fromscratch.machine.precision import Precision
from fromscratch.planning.cache import add_to_cache, read_cache

PEAK_SIZE = 2_048  # rows of the square matrices whose product measures a CPU's peak; they fill the caches
PEAK_REPEATS = 5
CACHE = "peak-flops"


class PeakFlops:
    """Peak FLOP/s of the device by precision."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._max_flops: dict[str, float] = {}

    def sample(self, precision: str) -> None:
        """Measures a CPU again and keeps the maximum, because other load lowers single measurements."""
        if self._hardware.device.type != "cpu":
            return
        known = self._max_flops.get(precision) or known_peak_flops(self._hardware, precision) or 0.0
        self._max_flops[precision] = max(measured_peak_flops(precision), known)
        with suppress(OSError):  # a data folder that is not writable must not fail a measurement
            add_to_cache(CACHE, _key(self._hardware, precision), self._max_flops[precision])

    def __call__(self, precision: str) -> float | None:
        """Returns the peak FLOP/s, or None if it is unknown."""
        if self._hardware.device.type == "cpu" and precision not in self._max_flops:
            self.sample(precision)
        return self._max_flops.get(precision) or self._hardware.peak_flops(precision)


def known_peak_flops(hardware: Hardware, precision: str) -> float | None:
    """Returns the peak FLOP/s, of a CPU only if ``bench`` or ``fit`` measured it; None if it is unknown."""
    if hardware.device.type != "cpu":
        return hardware.peak_flops(precision)
    remembered = read_cache(CACHE).get(_key(hardware, precision))
    return remembered if isinstance(remembered, float) and remembered > 0 else None


def measured_peak_flops(precision: str) -> float:
    """Measures the FLOP/s of the fastest of a few large matrix products on the CPU, with torch's threads."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    best = float("inf")
    with Precision(precision, torch.device("cpu")).products():
        for _ in range(PEAK_REPEATS):
            begin = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - begin)
    return 2 * PEAK_SIZE**3 / best


def _key(hardware: Hardware, precision: str) -> str:
    """Names what a CPU's peak depends on."""
    return f"{hardware.name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision}"
