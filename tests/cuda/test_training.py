"""Training steps on a GPU: one graph, no waiting, no dependence on the division of a batch, bit-exact on request."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.determinism import WORKSPACE
from fromscratch.machine.hardware import find_hardware
from fromscratch.machine.memory import default_micro_batch
from fromscratch.planning.bench import Workload
from fromscratch.planning.fit import probe_in_process
from fromscratch.training.gradients import Outcome
from fromscratch.training.saving import HostBuffers
from fromscratch.training.step import GlobalOutOfMemoryError
from tests.command import run_command
from tests.cuda.small import SHAPE, cuda, make_stepper, weights_after
from tests.small import make_store, write_run_file


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("head", ["linear", "chunked"])
def test_only_the_chunked_head_breaks_the_graph_of_a_compiled_step(head: str, dropout: float) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    weights_after(make_stepper(compiled=True, model={"dropout": dropout, "head": head}), 3)
    counters = torch._dynamo.utils.counters
    assert head == "chunked" or counters["stats"]["unique_graphs"] == 1
    assert all("ChunkedHead._chunked" in reason for reason in counters["graph_break"])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_compiled_step_is_the_eager_one(dropout: float) -> None:
    torch.compiler.reset()
    model = {"dropout": dropout}
    start, wanted = (weights_after(make_stepper(model=model), steps) for steps in (0, 2))
    found = weights_after(make_stepper(model=model, compiled=True), 2)
    assert (found - wanted).norm() < 0.05 * (wanted - start).norm()


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_a_step_is_the_same_however_the_batch_is_divided(micro_batch: int) -> None:
    wanted, found = weights_after(make_stepper(), 2), weights_after(make_stepper(micro_batch=micro_batch), 2)
    start = weights_after(make_stepper(), 0)
    assert (found - wanted).norm() < 0.05 * (wanted - start).norm()


def test_attention_with_a_bias_and_dropout_takes_a_step() -> None:
    weights = weights_after(make_stepper(precision="bf16", model={"position": "alibi", "dropout": 0.1}), 2)
    assert torch.isfinite(weights).all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("policy", ["skip", "raise", "apply"])
def test_steps_do_not_wait_for_the_device(policy: str, precision: str) -> None:
    settings = {"nonfinite": policy, "clip": {"kind": "norm", "max_norm": 1.0}}
    stepper = make_stepper(precision=precision, train=settings, micro_batch=4)
    weights_after(stepper, 1)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in range(1, 4):
            stepper.take(step, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_deterministic_resume_is_bit_exact(tmp_path: Path) -> None:
    """In processes of their own, because CUDA must start deterministic."""
    file = write_run_file(tmp_path, train={"precision": "bf16"}, model={"num_heads": 2, "embedding_dim": 32})
    command = [sys.executable, "-m", "fromscratch", "train", str(file), "--runs-dir", str(tmp_path / "runs"), "--quiet"]
    environment = {key: value for key, value in os.environ.items() if key != WORKSPACE}

    def train(name: str, *options: str) -> int:
        whole = [*command, "--device", "cuda", "--deterministic", "--name", name, *options]
        return subprocess.run(whole, env=environment, check=False).returncode

    assert train("whole") == 0
    assert train("parts", "--stop-after", "10") == 75 and train("parts") == 0
    files = [tmp_path / "runs" / name / "checkpoints" / "latest" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_overflow_in_fp16_moves_nothing() -> None:
    stepper = make_stepper(precision="fp16")
    before = weights_after(stepper, 1)
    stepper.precision.scaler._scale.fill_(2.0**40)
    result = stepper.take(1, 1.0)
    assert int(result.outcome) == Outcome.SCALE_OVERFLOW
    assert torch.equal(weights_after(stepper, 0), before)
    assert float(stepper.precision.loss_scale()) < 2.0**40


def test_out_of_memory_is_recognised_and_half_of_the_batch_then_fits() -> None:
    stepper = make_stepper(model={"vocab_size": 50_257, "context_length": 512})
    weights_after(stepper, 1)
    small = make_stepper(model={"vocab_size": 50_257, "context_length": 512}, micro_batch=1)
    weights_after(small, 1)
    torch.cuda.empty_cache()
    used = torch.cuda.memory_allocated() + 600 * 2**20
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(GlobalOutOfMemoryError):
            stepper.take(1, 1.0)
        stepper.forget_gradients()
        halved = stepper.batches.smaller()
        assert halved is not None and halved.micro_batch == 4
        small.take(1, 1.0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_saved_copy_is_unchanged_while_training_continues() -> None:
    stepper = make_stepper()
    weights_after(stepper, 1)
    tensors = dict(stepper.model.named_parameters())
    wanted = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    copies = HostBuffers().copy({("model", name): tensor.detach() for name, tensor in tensors.items()})
    weights_after(stepper, 3)
    assert all(torch.equal(copies["model", name], wanted[name].cpu()) for name in wanted)
    assert any(not torch.equal(tensors[name].detach(), wanted[name]) for name in wanted)


def test_the_peak_of_a_probe_is_that_of_a_run(tmp_path: Path) -> None:
    """With micro-batches as large as those of evaluations, which both then make."""
    shape = {**SHAPE, "vocab_size": 257, "num_layers": 8}
    size = default_micro_batch(cuda(), shape["context_length"])
    train = {"precision": "bf16", "global_batch": size, "evaluate_every": 2, "checkpoint_every": 0}
    workload = Workload(GPTConfig.model_validate(shape), TrainConfig.model_validate({"precision": "bf16"}))
    probed = probe_in_process(workload, find_hardware("cuda"), Acceleration(), budget_bytes=2**60)(size)
    make_store(tmp_path / "store", documents=8_000)
    tokens = 4 * size * shape["context_length"]
    data, held_out = {"tokens": tokens}, {"tokens": size * shape["context_length"]}
    file = write_run_file(tmp_path, model=shape, train=train, data=data, eval=held_out)
    machine = ("--device", "cuda", "--micro-batch", size, "--no-compile", "--runs-dir", tmp_path / "runs")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert run_command("train", file, *machine, "--quiet").code == 0
    peak = torch.cuda.max_memory_allocated() - before
    assert probed.peak_memory_bytes == pytest.approx(peak, rel=0.05)


def test_two_processes_on_one_gpu_train_what_one_trains(tmp_path: Path) -> None:
    """Each process has half of the global batch, gradients travel by gloo."""
    command = [sys.executable, "-m", "tests.cuda.rank"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path), "cuda:0"], cwd=Path(__file__).parents[2])
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=200) for process in ranks] == [0, 0]
    wanted = weights_after(make_stepper(precision="fp32"), 2)
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_a_profile_shows_fused_attention_and_no_backward_of_slices() -> None:
    stepper = make_stepper()
    weights_after(stepper, 1)
    with contextlib.ExitStack() as stack:
        trace = stack.enter_context(profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]))
        stepper.take(1, 1.0)
        torch.cuda.synchronize()
    names = " ".join(event.key.lower() for event in trace.key_averages())
    assert "flash" in names or "cudnn" in names
    assert "slice_backward" not in names and "slicebackward" not in names
