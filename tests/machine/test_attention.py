"""Which attention runs by FlexAttention, and what is told of it."""

import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from fromscratch.cli.train import describe
from fromscratch.config.loading import parse_run_config
from fromscratch.config.model import GPTConfig
from fromscratch.machine import attention
from fromscratch.machine.attention import choose_attention, describe_attention, kernel_problem
from fromscratch.machine.precision import Precision
from fromscratch.models import flex
from fromscratch.models.attention import FusedAttention
from fromscratch.models.factory import build_model
from fromscratch.models.gpt import GPT
from fromscratch.models.mechanism import Sizes
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from tests.models.mechanisms import RotaryAttention, WindowAttention
from tests.small import write_run_file

CUDA = torch.device("cuda")
SHAPE = {"vocab_size": 31, "context_length": 128, "num_layers": 2, "num_heads": 2, "embedding_dim": 32, "dropout": 0.0}
WINDOW = {"kind": "sdpa", "window": (64, 0)}


def said(model: dict[str, Any], *, document_mask: bool = False, **tables: Any) -> str:
    data = {"store": "s", "document_mask": document_mask}
    return describe_attention(parse_run_config({"model": {**SHAPE, **model}, "data": data, **tables}, where="f"), CUDA)


@pytest.mark.parametrize(
    ("model", "document_mask", "says"),
    [
        ({}, False, ""),
        ({"dropout": 0.1}, False, ""),
        ({"attention": "explicit"}, False, ""),
        ({}, True, "document masks by FlexAttention"),
        ({"attention": WINDOW}, False, "windows by FlexAttention"),
        ({"attention": WINDOW, "position": "alibi"}, False, "windows and a bias on distance by FlexAttention"),
        (
            {"attention": {"kind": "explicit", "score_cap": 30.0, "window": 64}, "position": "alibi"},
            True,
            "document masks, windows, a bias on distance and capped scores by FlexAttention",
        ),
        (
            {"attention": WINDOW, "dropout": 0.1},
            True,
            "document masks and windows with a full mask (FlexAttention does not take dropout in attention)",
        ),
        (
            {"attention": {"kind": "explicit", "window": 64}},
            False,
            "windows with a full mask (FlexAttention does not take this kind of attention)",
        ),
        ({"context_length": 127}, True, "not take a context below 128 tokens)"),
        ({"embedding_dim": 16}, True, "not take heads of 8 channels, but powers of two from 16)"),
        ({"embedding_dim": 96}, True, "not take heads of 48 channels, but powers of two from 16)"),
    ],
)
def test_what_the_first_lines_say(model: dict[str, Any], document_mask: bool, says: str) -> None:
    found = said(model, document_mask=document_mask)
    assert found.endswith(says) and bool(found) == bool(says)


def test_examples_of_different_lengths_take_a_full_mask() -> None:
    found = said({"attention": WINDOW}, tune={"kind": "instruct"})
    assert found == "windows with a full mask (FlexAttention does not take sequences of different lengths)"


def test_other_devices_and_kinds_of_models_have_nothing_to_tell() -> None:
    table = {"model": {**SHAPE, "attention": WINDOW}, "data": {"store": "s"}}
    assert describe_attention(parse_run_config(table, where="f"), torch.device("cpu")) == ""
    table["model"] = {"kind": "lstm", "vocab_size": 31}
    assert describe_attention(parse_run_config(table, where="f"), CUDA) == ""


class Reversed(FusedAttention):
    """Weighs values in reverse."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
        return super().attend(query, key, value.flip(2), mask=mask, is_causal=is_causal)


def test_a_subclass_with_its_own_mask_or_scores_keeps_them() -> None:
    sizes = Sizes(31, 128, 2, 2, 32, dropout=0.0, attention_bias=False, tied_head=False)
    assert FusedAttention(sizes, 0).flex_problem() == RotaryAttention(sizes, 0).flex_problem() == ""
    for layer in (WindowAttention(sizes, 0, width=4), Reversed(sizes, 0)):
        assert layer.flex_problem() == "this kind of attention"


def gpt() -> GPT:
    model = build_model(GPTConfig.model_validate({**SHAPE, "attention": WINDOW}))
    assert isinstance(model, GPT)
    return model


def test_a_kernel_that_fails_is_told_in_one_line_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that no machine has."""
    monkeypatch.setattr(attention, "compile_problem", lambda *_: "")
    model = gpt()
    with caplog.at_level(logging.WARNING):
        choose_attention(model, Precision("fp32", torch.device("cpu")), torch.device("cuda", 99))
    assert not model.flex_attention
    (line,) = caplog.messages
    before, _, after = line.partition("; ")
    assert re.fullmatch(r"notice: FlexAttention does not work here \(\w+: .+\)", before)
    assert after == "attention with windows takes a full mask, which is slower"


def test_a_kernel_that_works_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """torch's uncompiled form in place of the kernel, and a CPU in place of the GPU."""
    monkeypatch.setattr(attention, "compile_problem", lambda *_: "")
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_compiled", lambda: torch_flex.flex_attention)
    on_cpu, model = partial(kernel_problem, device=torch.device("cpu")), gpt()
    monkeypatch.setattr(attention, "kernel_problem", lambda model, precision, _device: on_cpu(model, precision))
    for has_fixed_length in (False, True):
        choose_attention(model, Precision("bf16", torch.device("cpu")), CUDA, has_fixed_length=has_fixed_length)
        assert model.flex_attention == has_fixed_length
    assert not caplog.messages


def test_train_tells_it(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, model={"context_length": 128, "attention": {"kind": "sdpa", "window": 32}})
    plan = plan_run(file)
    placement = place_run(plan, RunDirectory(tmp_path / "run"), MachineOptions(device="cpu"))
    on_gpu = replace(placement, hardware=replace(placement.hardware, device=CUDA))
    said = "eager, windows with a full mask (FlexAttention does not take dropout in attention)"
    assert describe(plan, on_gpu, tmp_path).endswith(said)
    assert describe(plan, placement, tmp_path).endswith("eager")
