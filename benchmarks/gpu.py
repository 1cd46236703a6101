"""Everything there is to measure on a GPU, in about twenty-five minutes: prints one table, writes JSON.

    python benchmarks/gpu.py [--out gpu.json] [--tiny] [--parts kernels,head,attention,training,run] [--device cuda]

What is measured, each part after the other, so that an interruption leaves the earlier ones:

- ``kernels``: TFLOP/s of the matrix products of a layer and of the head, and of attention by torch's backends.
- ``head``: ms of the vocabulary head, forward and backward, by tokens per chunk.
- ``attention``: tokens/s and memory of two layers of GPT-2 small with a document mask, a window or capped scores, with
  a full mask or the explicit form, and by FlexAttention. Documents have about 1,024 tokens.
- ``training``: tokens/s, MFU and memory of GPT-2 small: dropout 0 and 0.1, the linear head, a residual stream in
  bf16, larger micro-batches, and the reference recipe.
- ``run``: tokens/s of ``fromscratch train`` compared with ``bench``, the cost of ``--deterministic``, and whether a run
  that stopped and resumed has the weights of one that did not.

``--tiny`` runs all of it on small shapes, on a CPU too: it shows that the script works, its numbers mean nothing.
The tests of the CUDA paths are a command of their own: ``pytest -m cuda``.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.acceleration import compile_problem
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.machine.precision import Precision
from fromscratch.models import head as head_module
from fromscratch.models.mechanism import Sizes
from fromscratch.planning.bench import REFERENCE, Case, Workload, measure, summarise
from fromscratch.planning.bench_worker import build_stepper, random_objective, time_steps
from fromscratch.planning.peak_flops import PeakFlops
from fromscratch.training.objective import Runtime

SMALL = {"preset": "gpt2-small", "vocab_size": 50_257, "attention_bias": False, "tied_head": False}
TINY = {"vocab_size": 257, "context_length": 32, "num_layers": 1, "num_heads": 2, "embedding_dim": 32}
Row = dict[str, Any]


def main() -> None:
    """Runs the parts, prints each row as it is known, and writes all of them."""
    arguments = parse()
    hardware = find_hardware(arguments.device)
    result: dict[str, Any] = {**hardware.to_dict(), "cuda": torch.version.cuda, "tiny": arguments.tiny, "rows": []}
    print(f"{hardware.name}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for name in arguments.parts.split(","):
        for row in PARTS[name](hardware, arguments.tiny):
            result["rows"].append({"part": name, **row})
            values = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if key != "what")
            print(f"{name:<9} {row['what']:<48} {values}", flush=True)
            if arguments.out:
                Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="file for the JSON")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", help="cuda, cuda:N or cpu")
    arguments = parser.parse_args()
    unknown = set(arguments.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts {', '.join(sorted(unknown))}: must be of {', '.join(PARTS)}")
    return arguments


def _short(value: object) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def seconds_of(call: Callable[[], object], hardware: Hardware, *, tiny: bool) -> float:
    """Median seconds of a call, after warm-up."""
    found = []
    for _ in range(3 if tiny else 13):
        hardware.synchronize()
        begin = time.perf_counter()
        call()
        hardware.synchronize()
        found.append(time.perf_counter() - begin)
    return statistics.median(found[2:])


def kernels(hardware: Hardware, tiny: bool) -> Iterator[Row]:
    """The rates that the rest of the numbers must be judged by."""
    tokens, width, vocabulary = (64, 32, 128) if tiny else (32_768, 768, 50_304)
    shapes = {"query, key, value": 3 * width, "up": 4 * width, "head": vocabulary}
    for name, columns in shapes.items():
        x, w = (torch.randn(n, width, device=hardware.device, dtype=torch.bfloat16) for n in (tokens, columns))
        seconds = seconds_of(lambda x=x, w=w: x @ w.T, hardware, tiny=tiny)  # type: ignore[misc]
        yield {
            "what": f"product {name} {tokens} x {width} x {columns}",
            "tflops": 2e-12 * x.numel() * columns / seconds,
        }
    shape = (1, 2, 64, 16) if tiny else (32, 12, 1_024, 64)
    q = torch.randn(shape, device=hardware.device, dtype=torch.bfloat16, requires_grad=True)
    flops = 2 * 2 * shape[0] * shape[1] * shape[2] ** 2 * shape[3] / 2
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        for dropout in (0.0, 0.1) if hardware.device.type == "cuda" else (0.0,):
            yield {
                "what": f"attention {backend.name} dropout {dropout}",
                **_attention(q, backend, dropout, flops, hardware, tiny),
            }


def _attention(
    q: torch.Tensor, backend: SDPBackend, dropout: float, flops: float, hardware: Hardware, tiny: bool
) -> dict[str, Any]:
    """TFLOP/s of causal attention, forward alone and with backward, of 3.5 times its work."""

    def forward() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, q, q, None, dropout, True)

    try:
        one = seconds_of(forward, hardware, tiny=tiny)
        both = seconds_of(lambda: torch.autograd.grad(forward().sum(), q), hardware, tiny=tiny)
    except RuntimeError as error:
        return {"error": str(error).splitlines()[0][:80]}
    return {"forward_tflops": flops / one / 1e12, "both_tflops": 3.5 * flops / both / 1e12}


def head(hardware: Hardware, tiny: bool) -> Iterator[Row]:
    """The head by tokens per chunk: the most that stays in the L2 cache should win."""
    width, vocabulary, batch, time_steps = (32, 257, 2, 16) if tiny else (768, 50_257, 32, 1_024)
    sizes = Sizes(vocabulary, time_steps, 1, 1, width, dropout=0.0, attention_bias=False, tied_head=False)
    hidden = torch.randn(batch, time_steps, width, device=hardware.device, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, vocabulary, (batch, time_steps), device=hardware.device)
    kernels = {"eager": None}
    if hardware.device.type == "cuda" and not compile_problem(hardware.device, "bf16"):
        from fromscratch.machine.head_kernel import triton_rows

        kernels["kernel"] = triton_rows
    for name, function in kernels.items():
        for rows in (512, 4_096, 32_768):
            module = head_module.ChunkedHead(sizes).to(hardware.device)
            if function is not None:
                module.use_kernel(function)
            module.max_rows = rows
            seconds = seconds_of(lambda m=module: m.losses(hidden, targets).sum().backward(), hardware, tiny=tiny)  # type: ignore[misc]
            yield {"what": f"head {name}, {rows} tokens per chunk", "ms": 1e3 * seconds}


def attention(hardware: Hardware, tiny: bool) -> Iterator[Row]:
    """Whole training steps, each way compiled by itself."""
    windowed, capped = {"kind": "sdpa", "window": 256}, {"kind": "explicit", "score_cap": 50.0}
    shape = TINY if tiny else {**SMALL, "num_layers": 2, "vocab_size": 1_024}
    for context in (128,) if tiny else (1_024, 8_192):
        for name, slot in (("document mask", "sdpa"), ("window of 256", windowed), ("capped scores", capped)):
            table = {**shape, "context_length": context, "position": "rope", "attention": slot, "dropout": 0.0}
            row: Row = {"what": f"{name}, context {context}"}
            for way in ("full", "flex"):
                row |= _speed_of(GPTConfig.model_validate(table), hardware, tiny, way, document_mask=slot == "sdpa")
            yield row


def _speed_of(config: GPTConfig, hardware: Hardware, tiny: bool, way: str, *, document_mask: bool) -> Row:
    """Tokens/s and peak memory of micro-batches of 8,192 tokens."""
    is_gpu = hardware.device.type == "cuda"
    if is_gpu:
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runtime = Runtime(hardware.device, max(1, 8_192 // config.context_length), Precision("bf16", hardware.device))
    case = Case(runtime.micro_batch, "bf16", is_gpu and not compile_problem(hardware.device, "bf16"))
    objective = random_objective(config, runtime)
    stepper = build_stepper(config, TrainConfig(), case, objective, runtime, document_mask=document_mask)
    if is_gpu and not stepper.model.flex_attention:
        return {"error": "FlexAttention is not used"}
    stepper.model.flex_attention = is_gpu and way == "flex"
    steps = 1 if tiny else 10
    try:
        found = time_steps(stepper, hardware, steps=steps, max_seconds=float("inf"), holds_gradients=False)
    except RuntimeError as error:
        return {f"{way}_error": str(error).splitlines()[0][:80]}
    return {
        f"{way}_tokens_per_second": case.micro_batch * config.context_length / statistics.median(found["step_seconds"]),
        f"{way}_peak_mib": (hardware.peak_memory_bytes() or 0) / 2**20,
    }


def training(hardware: Hardware, tiny: bool) -> Iterator[Row]:
    """Steps of GPT-2 small, each case in a process of its own."""
    compiled = hardware.device.type == "cuda" and not compile_problem(hardware.device, "bf16")
    few, many = (1, 2) if tiny else (32, 96)
    cases: list[tuple[str, Row, Case]] = [
        ("dropout 0", {"dropout": 0.0}, Case(few, "bf16", compiled)),
        ("dropout 0, linear head", {"dropout": 0.0, "head": "linear"}, Case(few, "bf16", compiled)),
        ("dropout 0, residual stream in bf16", {"dropout": 0.0, "residual_dtype": "bf16"}, Case(few, "bf16", compiled)),
        ("dropout 0.1", {"dropout": 0.1}, Case(few, "bf16", compiled)),
        ("dropout 0.1, reference", {"dropout": 0.1}, Case(max(1, few // 2), "bf16", recipe=REFERENCE)),
        ("dropout 0, larger", {"dropout": 0.0}, Case(many, "bf16", compiled)),
        ("dropout 0.1, larger", {"dropout": 0.1}, Case(many, "bf16", compiled)),
    ]
    for name, changes, case in cases:
        model = GPTConfig.model_validate({**(TINY if tiny else SMALL), **changes})
        workload, peak = Workload(model, TrainConfig()), PeakFlops(hardware)
        (found,) = measure(workload, [case], hardware, steps=1 if tiny else 10)
        row = summarise(found, workload, peak)
        yield {
            "what": f"{name}, micro-batch {case.micro_batch}",
            "tokens_per_second": row.tokens_per_second,
            "mfu": row.mfu,
            "peak_mib": row.peak_memory_bytes and row.peak_memory_bytes / 2**20,
            "first_step_seconds": row.first_step_seconds,
            "error": row.error,
        }


def run(hardware: Hardware, tiny: bool) -> Iterator[Row]:
    """Whole runs: the loop's own cost, that of determinism, and whether a resume is bit-exact."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = _write_run(folder, tiny)
        steps, device = 4 if tiny else 20, str(hardware.device)
        for options in ([], ["--deterministic"]):
            hashes = []
            for run_name, stops in (("whole", [steps]), ("resumed", [steps // 2, steps])):
                for stop in stops:
                    answer = _train(file, "-".join([run_name, *options]), stop, device, options)
                hashes.append(_hash_of_weights(folder / "runs" / "-".join([run_name, *options])))
            yield {
                "what": f"train {' '.join(options) or 'with the fastest kernels'}, dropout 0.1",
                "tokens_per_second": answer["tokens_per_second"],
                "resume_is_bit_exact": hashes[0] == hashes[1],
            }


def _write_run(folder: Path, tiny: bool) -> Path:
    """A run file with dropout 0.1, and a byte-level store of made-up text that is long enough."""
    text, batch, context = "the quick brown fox jumps over the lazy dog. ", (4 if tiny else 96), 32 if tiny else 1_024
    documents = [json.dumps({"text": text * 40 + str(n)}) for n in range(20 if tiny else 2_500)]
    (folder / "texts.jsonl").write_text("\n".join(documents), "utf-8")
    store = [*COMMAND, "data", "prepare", "texts.jsonl", "--out", "store", "--tokenizer", "bytes", "--quiet"]
    subprocess.run(store, cwd=folder, check=True, capture_output=True)
    model = [f"{key} = {json.dumps(value)}" for key, value in (TINY if tiny else SMALL).items()]
    lines = ["[model]", *model, "dropout = 0.1", "[data]", 'store = "store"', f"tokens = {20 * batch * context}"]
    lines += ["[train]", f"global_batch = {batch}", 'precision = "bf16"', "evaluate_every = 0", "checkpoint_every = 0"]
    (folder / "run.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "run.toml"


COMMAND = [sys.executable, "-m", "fromscratch"]


def _train(file: Path, name: str, stop: int, device: str, options: list[str]) -> dict[str, Any]:
    """Trains up to a step; returns the summary."""
    command = [*COMMAND, "train", file.name, "--name", name, "--stop-after", str(stop), "--device", device, *options]
    done = subprocess.run([*command, "--json", "--quiet"], cwd=file.parent, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 75):
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _hash_of_weights(run_folder: Path) -> str:
    return hashlib.sha256((run_folder / "checkpoints" / "latest" / "model.safetensors").read_bytes()).hexdigest()


PARTS = {"kernels": kernels, "head": head, "attention": attention, "training": training, "run": run}

if __name__ == "__main__":
    main()
