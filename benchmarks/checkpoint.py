"""Measures saving a checkpoint: how long training waits, and MB/s compared with a plain write.

    python benchmarks/checkpoint.py [--preset gpt2-small] [--rounds 3] [--folder DIR] [--out benchmarks/checkpoint.json]

Writes the same tensors in three ways, interleaved: a plain write with an fsync at the end; a save in the
foreground that reads the file again for its checksum; and training's save in the background.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.files import flush_file, sha256_of, verify_folder
from fromscratch.formats.checkpoints import TrainingState
from fromscratch.formats.tensor_files import bytes_of
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.factory import build_empty
from fromscratch.models.gpt import GPT
from fromscratch.optim.composite import CompositeOptimizer, as_composite
from fromscratch.training.parallelism import SingleProcess
from fromscratch.training.saving import CheckpointSaver, SaveRequest, SaveResult


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="gpt2-small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    hardware = find_hardware(arguments.device)
    model, optimizer = trained(arguments.preset, hardware.device)
    tensors = {**model_tensors(model), **optimizer.state_tensors(model.named_parameters())}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        rows = measure(model, optimizer, tensors, folder, rounds=arguments.rounds)
    finally:
        shutil.rmtree(folder)
    megabytes = bytes_of(tensors) / 1e6
    print(f"{megabytes:,.0f} MB, {hardware.device} ({hardware.name})")
    print(f"{'':<34} {'training waits':>14} {'seconds':>8} {'MB/s':>6}")
    for name, stalls, seconds in rows:
        stall, total = statistics.median(stalls), statistics.median(seconds)
        print(f"{name:<34} {stall:>12.2f} s {total:>8.2f} {megabytes / total:>6,.0f}")
    if arguments.out:
        conditions = {**hardware.to_dict(), "preset": arguments.preset, "bytes": bytes_of(tensors)}
        table = [{"way": name, "stall_seconds": stalls, "seconds": seconds} for name, stalls, seconds in rows]
        Path(arguments.out).write_text(json.dumps({**conditions, "rows": table}, indent=1) + "\n", "utf-8")


def trained(preset: str, device: torch.device) -> tuple[GPT, CompositeOptimizer]:
    """Returns a model and its optimiser after one step."""
    model = build_empty(GPTConfig(preset=preset, vocab_size=50_257, tied_head=False), device)
    optimizer = as_composite(TrainConfig().optimizer.build(list(model.named_parameters())))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
        parameter.grad = torch.randn_like(parameter)
    optimizer.step_unless(torch.zeros((), dtype=torch.bool, device=device))
    optimizer.zero_grad()
    return model, optimizer


Row = tuple[str, list[float], list[float]]


def measure(
    model: GPT, optimizer: CompositeOptimizer, tensors: dict[str, Tensor], folder: Path, *, rounds: int
) -> list[Row]:
    """Returns rows of a name, the seconds that training waits, and the seconds until the data is on the disk."""
    saver = CheckpointSaver(folder / "checkpoints", keep=1)
    (folder / "checkpoints").mkdir()
    request = SaveRequest({}, (None, None), before_writing=lambda: None)
    plain: list[float] = []
    foreground: list[float] = []
    results: list[SaveResult] = []
    for step in range(1, rounds + 2):
        plain.append(timed(lambda: plain_write(tensors, folder / "plain")))
        foreground.append(timed(lambda: save_then_read(tensors, folder / "foreground.safetensors")))
        contents = SingleProcess().gather(model, optimizer, {}, TrainingState(step=step))
        assert contents is not None
        saver.begin(contents, request)
        result = saver.collect(wait=True)
        assert result is not None and not result.error, result
        results.append(result)
    saver.close()
    verify_folder(folder / "checkpoints" / "latest")
    background = [result.stall_seconds + result.write_seconds for result in results]
    stalls = [result.stall_seconds for result in results]
    return [
        ("plain write", plain, plain),
        ("in the foreground, read again", foreground, foreground),
        ("in the background, the first", stalls[:1], background[:1]),
        ("in the background, later ones", stalls[1:], background[1:]),
    ]


def timed(work: Callable[[], None]) -> float:
    """Returns the seconds of one call."""
    began_at = time.perf_counter()
    work()
    return time.perf_counter() - began_at


def plain_write(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes the bytes of all tensors and an fsync, without any format."""
    with path.open("wb", buffering=0) as file:
        for tensor in tensors.values():
            left = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
            while left:
                left = left[file.write(left) :]
        os.fsync(file.fileno())


def save_then_read(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file, flushes it, and reads it again for the checksum."""
    save_file(tensors, path)
    flush_file(path)
    sha256_of(path)


if __name__ == "__main__":
    main()
