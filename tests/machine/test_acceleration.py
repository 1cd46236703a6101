"""Compiling, activation checkpointing, prefetching and kept memory: nothing of it changes a result."""

import dataclasses
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.machine import emulation
from fromscratch.machine.acceleration import Acceleration, accelerate, choose_acceleration
from fromscratch.machine.allocator import CUDA_TUNABLES, use_expandable_segments
from fromscratch.models.compiling import prepare_to_compile
from fromscratch.models.dropout import Dropout, set_sequence_keys
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.processes.world import World
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.training.next_token import NextToken, TokenBatches, next_token_loss
from fromscratch.training.objective import Loss, MicroBatch
from fromscratch.training.prefetch import Prefetcher
from tests.small import run_small, write_run_file

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 61, "context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 16, "dropout": 0.2}
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


class Trained(NamedTuple):
    network: GPT
    loss: Loss


def model(acceleration: Acceleration, *, backend: str = "eager", **changes: object) -> Trained:
    config = GPTConfig.model_validate({**SHAPE, **changes})
    built = build_empty(config, "cpu")
    loss = accelerate(built, next_token_loss, acceleration, backend=backend)
    initialise(built, config, seed=1)
    return Trained(built.train(), loss)


def gradients(trained: Trained, step: int) -> list[Tensor]:
    network = trained.network
    tokens = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(step))
    set_sequence_keys(network, (10 + step, 20 + step))
    network.zero_grad()
    total = trained.loss(network, MicroBatch(tokens[:, :-1], tokens[:, 1:], (10 + step, 20 + step)), {}).total
    total.backward()
    return [total.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_activation_checkpointing_changes_nothing_dropout_included(attention: str) -> None:
    plain = model(Acceleration(), attention=attention)
    checkpointed = model(Acceleration(activation_checkpointing=True), attention=attention)
    for wanted, found in zip(gradients(plain, 0), gradients(checkpointed, 0), strict=True):
        assert torch.equal(found, wanted)
    assert list(checkpointed.network.state_dict()) == list(plain.network.state_dict())


def test_activation_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        network = model(Acceleration(activation_checkpointing=checkpointing), num_layers=6).network
        sizes: list[int] = []

        def count(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network.losses(torch.zeros(2, 16, dtype=torch.long), torch.zeros(2, 16, dtype=torch.long))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it where a graph breaks
def test_compiled_steps_are_the_eager_ones_and_names_stay() -> None:
    torch.compiler.reset()
    plain, compiled = model(Acceleration()), model(Acceleration(compile=True))
    for step in range(3):
        for wanted, found in zip(gradients(plain, step), gradients(compiled, step), strict=True):
            torch.testing.assert_close(found, wanted)
    assert [name for name, _ in compiled.network.named_parameters()] == [
        name for name, _ in plain.network.named_parameters()
    ]


@pytest.mark.parametrize("head", ["linear", "chunked"])
def test_only_the_chunked_head_breaks_the_graph_and_new_dropout_keys_compile_nothing_anew(head: str) -> None:
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    trained = model(Acceleration(compile=True), attention="explicit", head=head)
    gradients(trained, 0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1 if head == "linear" else graphs > 1
    assert all("ChunkedHead._chunked" in reason for reason in counters["graph_break"])
    for step in range(1, 4):
        gradients(trained, step)
    assert counters["stats"]["unique_graphs"] == graphs
    network = trained.network.eval()
    network.losses(torch.zeros(5, 9, dtype=torch.long), torch.zeros(5, 9, dtype=torch.long))
    assert counters["stats"]["unique_graphs"] == graphs, "evaluation stays eager"


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor_draws_the_eager_masks() -> None:
    torch.compiler.reset()
    prepare_to_compile()
    dropout = Dropout(0.25)
    compiled = torch.compile(dropout, dynamic=False)
    x = torch.randn(2, 9, 1300)
    for step in range(2):
        set_sequence_keys(dropout, (10 + step, 2**63 + step))
        found, wanted = compiled(x), dropout(x)
        assert torch.equal(found == 0, wanted == 0)
        torch.testing.assert_close(found, wanted)


def test_compiling_is_off_on_cpus_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = choose_acceleration(CPU, precision="fp32", compile_wanted=None, activation_checkpointing=True)
    assert chosen == Acceleration(compile=False, activation_checkpointing=True)
    assert str(chosen) == "eager, activation checkpointing"
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UsageError, match=r"--compile: .*C\+\+ compiler.*--no-compile"):
        choose_acceleration(CPU, precision="fp32", compile_wanted=True, activation_checkpointing=False)


def test_what_would_not_be_compiled_is_not_called_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated products would send compiled code back to eager without a word."""
    monkeypatch.setattr(emulation, "_has_instructions", lambda _kind: False)
    with pytest.raises(UsageError, match=r"--compile: .*no bf16 instructions.*--no-compile"):
        choose_acceleration(CPU, precision="bf16", compile_wanted=True, activation_checkpointing=False)
    assert choose_acceleration(CPU, precision="fp32", compile_wanted=True, activation_checkpointing=False)[0].compile


def test_a_fresh_run_does_not_inherit_what_the_old_one_chose(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=1, micro_batch=2)
    plan, machine = plan_run(file), MachineOptions(device="cpu")
    assert place_run(plan, run, machine).micro_batch == 2
    assert place_run(plan, run, machine, fresh=True).micro_batch == 8


def test_checkpointing_runs_to_the_same_weights_and_is_on_the_record(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    plain, _ = run_small(file, name="plain", stop_after=4)
    less, _ = run_small(file, name="less", stop_after=4, machine={"activation_checkpointing": True})
    weights = [(run.checkpoints / "latest" / "model.safetensors").read_bytes() for run in (plain, less)]
    assert weights[0] == weights[1]
    assert '"activation_checkpointing": true' in less.machine.read_text()


def test_prefetched_batches_are_the_same_ones(tmp_path: Path) -> None:
    objective = plan_run(write_run_file(tmp_path)).objective
    assert isinstance(objective, NextToken)
    sequences = objective.sequences
    plain = TokenBatches(sequences, 3, 7, CPU)
    ahead = dataclasses.replace(plain, prefetch=True)
    last = sequences.max_steps - 1
    for step in (0, 1, 2, 7, 3, last):  # a run may go back, or jump
        pairs = zip(plain.micro_batches(step), ahead.micro_batches(step), strict=True)
        for wanted, found in pairs:
            assert torch.equal(found.inputs, wanted.inputs) and torch.equal(found.targets, wanted.targets)
            assert found.sequence_keys == wanted.sequence_keys and found.kernel_key == wanted.kernel_key


def test_the_kernels_key_counts_the_sequences_of_the_global_batch(tmp_path: Path) -> None:
    objective = plan_run(write_run_file(tmp_path)).objective
    assert isinstance(objective, NextToken)
    found: dict[int, tuple[int, int]] = {}
    for size in (1, 2, 3):
        for rank in range(size):
            batches = TokenBatches(objective.sequences, 3, 7, CPU, World(rank, size))
            for batch in batches.micro_batches(4):
                assert batch.kernel_key is not None
                seed, first = batch.kernel_key
                for place, key in enumerate(batch.sequence_keys, first):
                    assert found.setdefault(place, (seed, key)) == (seed, key)
    assert len(found) == objective.sequences.global_batch


def test_a_prefetcher_is_one_ahead_and_passes_errors_on() -> None:
    loaded: list[int] = []

    def load(number: int) -> int:
        loaded.append(number)
        return 10 // number

    prefetcher = Prefetcher(load)
    assert prefetcher.take(5, 2) == 2
    assert prefetcher.take(2, 0) == 5
    assert loaded[:2] == [5, 2]
    with pytest.raises(ZeroDivisionError):
        prefetcher.take(0, None)
    assert prefetcher.take(1, None) == 10
    assert loaded == [5, 2, 0, 1]


MEASURE = """
import resource, sys, torch
from fromscratch.machine.allocator import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory() == (sys.argv[1] == "expected")
for _ in range(10):
    torch.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_is_kept_unless_the_user_tuned_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def faults(expected: str) -> int:
        done = subprocess.run([sys.executable, "-c", MEASURE, expected], capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept = faults("expected")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert kept * 2 < faults("tuned")


def test_cuda_segments_grow_unless_the_user_configured_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in CUDA_TUNABLES:
        monkeypatch.delenv(name, raising=False)
    assert not use_expandable_segments(CPU) and told == []
    assert use_expandable_segments(torch.device("cuda", 0)) and told == ["expandable_segments:True"]
    for name in CUDA_TUNABLES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "max_split_size_mb:128")
            assert not use_expandable_segments(torch.device("cuda", 0))
    assert len(told) == 1


def test_the_compilers_hint_about_tf32_fails_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate(model(Acceleration()).network, next_token_loss, Acceleration(compile=True), backend="eager")
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available", stacklevel=1)
    torch.compiler.reset()
