"""Predicts the peak memory of training without any of it: a step on tensors that have a shape and no content.

The engine's own step runs on torch's fake tensors, and every allocation and release is counted. So the
prediction knows each mechanism that the engine knows. Memory is linear in the number of layers and in the
micro-batch, as soon as the activations are larger than what backward allocates once; so few layers and few
sequences determine the rest.

The fake tensors are those of a CPU, because torch has fake CUDA tensors only where it has CUDA. For a GPU,
attention keeps no mask of dropped probabilities (the kernel draws it again), FlexAttention keeps what causal
attention keeps, and the head's larger chunks are added.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fromscratch.config.model import ModelConfig
from fromscratch.formats.tensor_files import bytes_of
from fromscratch.machine.attention import plan_attention
from fromscratch.machine.precision import Precision
from fromscratch.models.attention import FusedAttention
from fromscratch.models.factory import build_model
from fromscratch.models.gpt import GPT
from fromscratch.models.head import CHUNK_ELEMENTS, MAX_ROWS, ChunkedHead, chunk_rows
from fromscratch.models.language_model import LanguageModel
from fromscratch.optim.composite import as_composite
from fromscratch.planning.bench import Workload
from fromscratch.training.next_token import next_token_loss
from fromscratch.training.objective import MicroBatch
from fromscratch.training.step import GradientRules, Stepper

SIMULATED_LAYERS = (6, 12)
CPU_FRAGMENTATION = 0.25
"""Share of activations and logits that glibc's heap loses between blocks of different sizes, measured with models of
3 to 100 million parameters (``benchmarks/memory.py``)."""
CPU_LIBRARIES_BYTES = 140 << 20
"""What a process grows by in its first step beside tensors: kernels, oneDNN, thread stacks (measured)."""
CHUNK_COPIES = 2
"""fp32 copies of a chunk of logits that the head holds at once: the logits and their softmax."""


@dataclass(frozen=True)
class Bytes:
    """Peak memory of training by purpose."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What the layers keep for the backward pass."""
    logits: float
    """What the head and the loss take beside that, with the temporary memory of the largest operation."""
    averages: float = 0.0
    """Averages of the weights."""
    other: float = 0.0
    """On a CPU: the process itself, and the heap's losses."""

    @property
    def total(self) -> float:
        return sum(astuple(self))


@dataclass(frozen=True)
class MemoryForecast:
    """Peak memory per process: linear between the micro-batches that were simulated, and beyond."""

    device_type: str
    simulated: dict[int, Bytes]
    """Two or more micro-batches, the smallest first."""

    def at(self, micro_batch: int) -> Bytes:
        """Returns the peak at a micro-batch."""
        sizes = list(self.simulated)
        place = max(1, next((n for n, size in enumerate(sizes) if size >= micro_batch), len(sizes) - 1))
        low, high = sizes[place - 1], sizes[place]
        share = (micro_batch - low) / (high - low)
        ends = astuple(self.simulated[low]), astuple(self.simulated[high])
        return Bytes(*(a + share * (b - a) for a, b in zip(*ends, strict=True)))

    @property
    def bytes_per_sequence(self) -> float:
        """What each further sequence takes, in large micro-batches."""
        last = max(self.simulated)
        return self.at(last + 1).total - self.at(last).total

    def divided(self, processes: int) -> "MemoryForecast":
        """Returns the forecast of a model that processes divide among them; its weights are gathered once, at most."""

        def part(one: Bytes) -> Bytes:
            return replace(
                one,
                weights=one.weights / processes + one.weights,
                gradients=one.gradients / processes,
                optimizer=one.optimizer / processes,
                averages=one.averages / processes,
            )

        return replace(self, simulated={size: part(one) for size, one in self.simulated.items()})

    def max_micro_batch(self, budget_bytes: float) -> int:
        """Returns the largest micro-batch within a budget; 0 if not even one sequence fits."""
        low, high = 0, 1
        while self.at(high).total <= budget_bytes:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).total <= budget_bytes else (low, middle)
        return low


def forecast_memory(
    workload: Workload, device_type: str, *, process_bytes: int = 0, activation_checkpointing: bool = False
) -> MemoryForecast:
    """Predicts the peak memory of training without ``torch.compile``, gradients accumulated over micro-batches.

    Args:
        workload: its model has a known vocabulary size.
        device_type: ``cpu``, ``cuda`` or ``mps``.
        process_bytes: on a CPU, what a process takes that has imported torch and built nothing.
    """
    config, is_gpu = workload.largest_model, device_type != "cpu"
    forecast = {}
    for batch in _micro_batches_to_simulate(config, workload.train.global_batch):
        parts = Bytes(*_at_full_depth(workload, batch, device_type, activation_checkpointing))
        if is_gpu:
            parts = replace(parts, logits=parts.logits + _larger_chunks(config, workload.train.precision))
        else:
            lost = CPU_FRAGMENTATION * (parts.activations + parts.logits)
            parts = replace(parts, other=lost + process_bytes + CPU_LIBRARIES_BYTES)
        forecast[batch] = parts
    return MemoryForecast(device_type, forecast)


def _micro_batches_to_simulate(config: ModelConfig, global_batch: int) -> list[int]:
    """Returns one sequence, and two sizes that fill chunks of the head, if the global batch is so large.

    Memory grows faster below the size that fills a chunk.
    """
    assert config.vocab_size is not None
    fills = -(-CHUNK_ELEMENTS["cpu"] // (config.context_length * config.vocab_size))
    if fills == 1:
        return [1, 2]
    largest = max(2, global_batch)
    return sorted({1, min(2 * fills, largest), min(3 * fills, largest)})


def _at_full_depth(workload: Workload, batch: int, device_type: str, activation_checkpointing: bool) -> list[float]:
    """Simulates a model of few layers as it is, and extends the line through two depths to a deeper one."""
    config = workload.largest_model
    num_layers, (few, more) = getattr(config, "num_layers", 0), SIMULATED_LAYERS
    if num_layers <= more:
        return _simulate(workload, config, batch, device_type, activation_checkpointing)
    ends = [
        _simulate(
            workload, config.model_copy(update={"num_layers": depth}), batch, device_type, activation_checkpointing
        )
        for depth in SIMULATED_LAYERS
    ]
    share = (num_layers - few) / (more - few)
    return [a + share * (b - a) for a, b in zip(*ends, strict=True)]


def _larger_chunks(config: ModelConfig, precision: str) -> int:
    """Bytes by which the head's chunks on a GPU exceed those of the simulation."""
    assert config.vocab_size is not None
    with torch.device("meta"):
        has_chunks = any(isinstance(module, ChunkedHead) for module in build_model(config).modules())
    max_rows = MAX_ROWS["eager"] if precision in ("bf16", "fp16") else None
    rows = chunk_rows("cuda", config.vocab_size, max_rows)
    larger = max(0, rows * config.vocab_size - CHUNK_ELEMENTS["cpu"])
    return 4 * CHUNK_COPIES * larger if has_chunks else 0


def _simulate(
    workload: Workload, config: ModelConfig, batch: int, device_type: str, activation_checkpointing: bool
) -> list[float]:
    """Returns weights, gradients, optimiser, activations, logits and averages, in bytes, at the peak of a step."""
    train, cpu = workload.train, torch.device("cpu")
    with FakeTensorMode(), _Allocations() as memory:
        with cpu:
            model = build_model(config)
        model.document_end = 0 if workload.document_mask else None
        if model.gradient_checkpointing is not None:
            model.gradient_checkpointing = activation_checkpointing
        precision = Precision(train.precision, cpu)
        if device_type != "cpu":
            precision.emulated = False
            if device_type == "cuda" and plan_attention(model).uses_flex:
                _keep_no_scores(model)
            _keep_no_probability_masks(model)
        at_head: list[int] = []
        _call_before(model, lambda: at_head.append(memory.live))
        optimizer = as_composite(train.optimizer.build(list(model.named_parameters())))
        stepper = Stepper(
            model,
            optimizer,
            _ShapesOfBatches(config, batch),
            loss=next_token_loss,
            rules=GradientRules(train.clip.build(), train.nonfinite.build()),
            precision=precision,
            carry=model.initial_carry(batch),
        )
        stepper.keep_averages(train.average_rules())
        model.train()
        stepper.hold_gradients()
        with optimizer.temporary_state():
            stepper.probe_memory(0)
            of_optimizer = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t is not None)
        weights = sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))
        gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        of_averages = sum(bytes_of(tensors) for tensors in stepper.averages.averages.values())
        fixed = weights + gradients + of_optimizer + of_averages
        activations = max(at_head, default=memory.peak) - fixed
        return [weights, gradients, of_optimizer, activations, memory.peak - fixed - activations, of_averages]


class _Allocations(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # whether all losses have the same upstream gradient: the loss is a sum, so they have
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.live -= size


@dataclass(frozen=True)
class _ShapesOfBatches:
    """Token ids of the right shape, two micro-batches per step; see ``Batches``."""

    config: ModelConfig
    micro_batch: int
    max_steps = 1

    def targets_in(self, step: int) -> int:
        return self.num_micro_batches(step) * self.micro_batch * self.config.context_length

    def num_micro_batches(self, step: int) -> int:
        return 2

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        tokens = torch.zeros(self.micro_batch, self.config.context_length, dtype=torch.long)
        yield MicroBatch(tokens, torch.zeros_like(tokens), tuple(range(self.micro_batch)))

    def smaller(self) -> None:
        return None


def _keep_no_probability_masks(model: LanguageModel) -> None:
    """Fused attention on a GPU keeps queries, keys, values and its output only (Dao et al. 2022, section 3.1)."""
    for module in model.modules():
        if isinstance(module, FusedAttention):
            module.probability_dropout.probability = 0.0


def _keep_no_scores(model: LanguageModel) -> None:
    """FlexAttention keeps queries, keys, values and its output only; a causal kernel that does so takes its place."""

    def attend(query: Tensor, key: Tensor, value: Tensor, _blocks: object) -> Tensor:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    assert isinstance(model, GPT)
    model.flex_attention = True
    for layer in model.attentions():
        layer.attend_in_blocks = attend


def _call_before(model: LanguageModel, action: Callable[[], object]) -> None:
    """Calls ``action`` whenever the head begins to compute losses; the head of every kind has ``losses``."""
    head = getattr(model, "head", None)

    def after_action(losses: Callable[..., Any], *arguments: Any) -> Any:
        action()
        return losses(*arguments)

    for name in ("losses", "penalised_losses"):
        if isinstance(head, nn.Module) and hasattr(head, name):
            setattr(head, name, partial(after_action, getattr(head, name)))
