"""Finds the device of this machine and returns its name, memory and peak FLOP/s."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fromscratch.errors import UsageError

# Dense peak of bf16/fp16 matrix products in FLOP/s, without sparsity, by words of the device's name.
# The first match counts. Sources: NVIDIA's data sheets of each device (HGX B200; GH200, H200, H100 SXM,
# NVL and PCIe; A100, A40, A30, A10, L40S, L40, L4, RTX A6000, RTX 6000 Ada, T4, V100), and NVIDIA's Ampere,
# Ada and Blackwell GeForce architecture white papers (fp32 accumulation).
PEAK_16BIT_FLOPS = {
    "B200": 2_250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX A6000": 154.8e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
    "V100": 125e12,
}
OTHER_MODELS = r"(?! (?:Ti|SUPER|D|Laptop|Max-Q|Mobile)\b)"
"""Words after a name that denote another device, which is not in the table."""


def is_model(model: str, device_name: str) -> bool:
    """Whether a device's name (``NVIDIA A100-SXM4-80GB``) is that of a model (``A100``)."""
    return re.search(rf"\b{re.escape(model)}\b{OTHER_MODELS}", device_name) is not None


def peak_16bit_flops(device_name: str) -> float | None:
    """Returns the dense peak of 16-bit matrix products in FLOP/s, or None if it is unknown."""
    return next((peak for model, peak in PEAK_16BIT_FLOPS.items() if is_model(model, device_name)), None)


@dataclass(frozen=True)
class Hardware:
    """The device that a run uses."""

    device: torch.device
    name: str
    memory_bytes: int | None
    """Memory of the accelerator, or the machine's main memory if the device uses that; None if it is unknown."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the device's entries of ``machine.json``."""
        return {
            "device": self.device.type,
            "device_name": self.name,
            "memory_bytes": self.memory_bytes,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "system": platform.platform(),
        }

    def peak_flops(self, precision: str) -> float | None:
        """Returns the peak FLOP/s of 16-bit matrix products, or None if it is unknown."""
        if self.device.type != "cuda" or precision not in ("bf16", "fp16"):
            return None
        return peak_16bit_flops(self.name)

    def synchronize(self) -> None:
        """Waits for all queued work of the device. Timings need this."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def peak_memory_bytes(self) -> int:
        """Returns the peak memory so far: of tensors on an accelerator, of the whole process on a CPU."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if self.device.type == "mps":
            return int(torch.mps.driver_allocated_memory())
        return _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    """Reads VmHWM on Linux, because ``ru_maxrss`` there includes the peak of the parent process."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def find_hardware(name: str | None = None, *, local_rank: int = 0, processes_here: int = 1) -> Hardware:
    """Returns the named device, or the first available kind of CUDA, Apple's MPS and CPU.

    Args:
        local_rank: rank of the calling process on this machine; each process uses one CUDA device.
        processes_here: number of processes on this machine.

    Raises:
        UsageError: the name is invalid, or this machine has no such device, or fewer than processes.
    """
    device = torch.device(_best_kind()) if name is None else _parse(name)
    if device.type == "cuda":
        _check_cuda_devices(device, processes_here)
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        return Hardware(device, properties.name, properties.total_memory)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: this machine has no MPS device; use --device cpu")
    return Hardware(device, _processor_model() or processor_kind(), _main_memory_bytes())


def processor_kind() -> str:
    """Names the kind of the processor, such as ``x86_64``. Earlier versions recorded it as the name of a CPU."""
    return platform.processor() or platform.machine()


def _processor_model() -> str:
    """Returns the name that the processor gives itself; empty if the system does not tell it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = re.search(r"^model name\s*:\s*(\S.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        return " ".join(model[1].split()) if model else ""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _main_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _check_cuda_devices(device: torch.device, processes_here: int) -> None:
    """Raises UsageError if the device does not exist, or if there are fewer devices than processes."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(f"--device {device}: this machine has {count} CUDA devices; use --device cpu")
    if processes_here > 1 and device.index is not None:
        raise UsageError(
            f"--device {device}: one device for {processes_here} processes; use --device cuda, and select the "
            "devices with CUDA_VISIBLE_DEVICES"
        )
    if processes_here > count:
        raise UsageError(f"{processes_here} processes, but this machine has {count} CUDA devices; use at most {count}")


def _best_kind() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _parse(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cuda", "mps", "cpu"):
        raise UsageError(f"--device {name}: must be cuda, cuda:N, mps or cpu")
    return device
