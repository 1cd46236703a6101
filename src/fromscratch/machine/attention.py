"""Chooses how a device computes attention with windows, document masks, biases and capped scores.

On CUDA that is FlexAttention (``models/flex.py``), wherever it computes the same; else torch's other kernels with a
mask [T, T], or the explicit form. No choice changes a result beyond rounding.
"""

import logging
from typing import NamedTuple

import torch

from fromscratch.config.run import RunConfig
from fromscratch.machine.acceleration import compile_problem, ignore_warnings_of_the_compiler
from fromscratch.machine.precision import Precision
from fromscratch.models.attention import CausalAttention
from fromscratch.models.factory import build_model
from fromscratch.models.flex import BLOCK, visible_blocks
from fromscratch.models.gpt import GPT
from fromscratch.models.language_model import LanguageModel

LOG = logging.getLogger(__name__)


class AttentionPlan(NamedTuple):
    """What the attention of a model does beside causal attention, and how."""

    mechanisms: str
    """In words; empty if it does nothing else."""
    problem: str
    """What FlexAttention does not take; empty if it computes the same."""

    @property
    def uses_flex(self) -> bool:
        return bool(self.mechanisms) and not self.problem


def plan_attention(model: LanguageModel, *, has_fixed_length: bool = True) -> AttentionPlan:
    """Whether the model could use FlexAttention on a CUDA device; the device itself is not asked.

    Args:
        has_fixed_length: whether all sequences are as long as the context; for each other length the kernel would be
            compiled anew.
    """
    layers = model.attentions() if isinstance(model, GPT) else []
    if not all(isinstance(layer, CausalAttention) for layer in layers):
        return AttentionPlan("", "")
    names = ["document masks"] if layers and model.document_end is not None else []
    names += dict.fromkeys(name for layer in layers for name in layer.mechanisms)
    problem = next(filter(None, (layer.flex_problem() for layer in layers)), "")
    if not has_fixed_length:
        problem = "sequences of different lengths"
    elif model.context_length < BLOCK:
        problem = f"a context below {BLOCK} tokens"
    return AttentionPlan(" and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names), problem)


def describe_attention(config: RunConfig, device: torch.device) -> str:
    """For the first lines of a run: how a CUDA device computes such attention; empty if there is nothing to tell."""
    if device.type != "cuda":
        return ""
    with torch.device("meta"):
        model = build_model(config.model)
    model.document_end = 0 if config.data.document_mask else None
    plan = plan_attention(model, has_fixed_length=config.tune is None)
    if not plan.mechanisms:
        return ""
    how = f"with a full mask (FlexAttention does not take {plan.problem})" if plan.problem else "by FlexAttention"
    return f"{plan.mechanisms} {how}"


def choose_attention(
    model: LanguageModel, precision: Precision, device: torch.device, *, has_fixed_length: bool = True
) -> None:
    """Lets the model use FlexAttention if it is on a CUDA device and the kernel works there. Logs if it does not."""
    plan = plan_attention(model, has_fixed_length=has_fixed_length)
    if device.type != "cuda" or not plan.uses_flex or not isinstance(model, GPT):
        return
    ignore_warnings_of_the_compiler()
    problem = compile_problem(device, precision.kind) or kernel_problem(model, precision, device)
    if problem:
        LOG.warning(
            "notice: FlexAttention does not work here (%s); attention with %s takes a full mask, which is slower",
            problem,
            plan.mechanisms,
        )
    model.flex_attention = not problem


def kernel_problem(model: GPT, precision: Precision, device: torch.device) -> str:
    """Runs the kernel forward and backward on two blocks; returns its error, or an empty string."""
    layer, time = max(model.attentions(), key=lambda layer: layer.window), 2 * BLOCK
    heads = (layer.num_heads, layer.num_key_value_heads, layer.num_key_value_heads)
    try:
        inputs = [
            torch.zeros(1, n, time, layer.head_channels, device=device, dtype=precision.dtype, requires_grad=True)
            for n in heads
        ]
        documents = None if model.document_end is None else torch.zeros(1, time, dtype=torch.long, device=device)
        blocks = visible_blocks(time, device, window=layer.window, documents=documents)
        with precision.products():
            output = layer.attend_in_blocks(*inputs, blocks)
            torch.autograd.grad(output.sum(), inputs)
    except Exception as error:  # whatever the compiler or the device raises
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return ""
