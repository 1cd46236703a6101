"""New mechanisms from a run file to a published model: a window of attention, and rotary positions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from fromscratch.config.base import Slot
from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import open_model
from fromscratch.generation.decoders import CachedDecoder, PlainDecoder
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.costs import model_costs
from fromscratch.models.mechanism import forward_flops
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import choose_format, export_model
from fromscratch.publishing.model_code import model_code_files
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.session.run import run_training
from tests.kinds import registered
from tests.models.mechanisms import trial_kinds
from tests.small import SMALL_RUN, run_small, write_run_file

TRIALS: dict[str, dict[str, Any]] = {
    "window": {"attention": {"kind": "trial-window", "width": 4}},
    "rotary": {"attention": "trial-rotary", "position": "trial-none"},
}
SHAPE = {"vocab_size": 61, "context_length": 10, "num_layers": 3, "num_heads": 4, "embedding_dim": 32}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of 20 steps, one of each model, and of plain GPT-2."""
    path = tmp_path_factory.mktemp("trials")
    with trial_kinds(path):
        for name, changes in {"plain": {}, **TRIALS}.items():
            run_small(write_run_file(path, name, model=changes), name=name)
        yield path


@pytest.mark.parametrize("name", TRIALS)
def test_it_trains_generates_and_publishes(folder: Path, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    losses = [record["loss"] for record in read_records(folder / "runs" / name / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 1.0
    plain = [record["loss"] for record in read_records(folder / "runs" / "plain" / "metrics.jsonl")]
    assert losses != plain
    loaded = open_model(str(folder / "runs" / name), find_hardware("cpu"))
    prompts = [list(b"the cat sees"), list(b"a")]
    cached, uncached = (make(loaded.model, prompts, max_new_tokens=30) for make in (CachedDecoder, PlainDecoder))
    with torch.inference_mode():
        for token in range(30):  # beyond the window of 4, and beyond the context of 16
            torch.testing.assert_close(cached.next_logits(), uncached.next_logits(), atol=1e-5, rtol=1e-4)
            for decoder in (cached, uncached):
                decoder.texts.append([token, 2 * token])
    assert choose_format(loaded.config, None) == "custom"
    with pytest.raises(
        UsageError, match=r"--format native: the model is neither GPT-2-shaped \((attention|position) = "
    ):
        choose_format(loaded.config, "native")
    export_model(loaded, tmp_path / "published", format_name="custom", card=CardSettings())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "published", trust_remote_code=True).eval()
    tokens = torch.tensor([list(b"the cat sees hea")])
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, loaded.model(tokens), atol=1e-5, rtol=1e-4)


def test_a_window_is_never_looked_beyond(folder: Path) -> None:
    model = open_model(str(folder / "runs" / "window"), find_hardware("cpu")).model
    tokens = torch.arange(16)[None]
    changed = tokens.clone()
    changed[0, 0] = 99
    layers, width = 2, 4
    reached = layers * (width - 1)  # each layer hands on what it saw
    with torch.inference_mode():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, reached + 1 :], after[:, reached + 1 :])
    assert not torch.allclose(before[:, reached], after[:, reached])


def test_rotary_positions_count_from_one_another(folder: Path) -> None:
    attention = open_model(str(folder / "runs" / "rotary"), find_hardware("cpu")).model.blocks[0].attention
    x = 10 * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))  # large, so that scores differ
    positions = torch.arange(9)[None]
    with torch.inference_mode():
        torch.testing.assert_close(attention(x, positions + 50), attention(x, positions), atol=1e-3, rtol=1e-3)
        assert not torch.allclose(attention(x, 2 * positions), attention(x, positions), atol=0.1)


def test_a_window_costs_less_by_hand() -> None:
    plain = GPTConfig.model_validate(SHAPE)
    window = GPTConfig.model_validate({**SHAPE, "attention": {"kind": "trial-window", "width": 4}})
    visible = [1 + 2 + 3 + 4 * 7, sum(range(1, 11))]  # pairs of a sequence of ten
    costs = [model_costs(config).forward_flops_per_token for config in (window, plain)]
    assert costs[1] - costs[0] == round(3 * 4 * 32 * (visible[1] - visible[0]) / 10)


def test_only_what_no_weight_depends_on_may_change(folder: Path) -> None:
    start = {"train": {**SMALL_RUN["train"], "start_from": "runs/plain@latest"}}
    with pytest.raises(UsageError, match=r"model\.attention\.kind: 'multi-head' in the parent, 'trial-rotary' here"):
        plan_run(write_run_file(folder, "child", **start, model={"attention": "trial-rotary"}))
    assert plan_run(write_run_file(folder, "child", **start, model={"attention": "explicit"})).parent

    def go_on(changes: dict[str, Any]) -> None:
        plan = plan_run(write_run_file(folder, "window", model=changes))
        path = folder / "runs" / "window"
        placement = place_run(plan, RunDirectory(path), MachineOptions(device="cpu"))
        run_training(plan, path, placement, observers=[], allowed_changes=["model.attention"])

    with pytest.raises(UsageError, match=r"--allow-change model\.attention: cannot be allowed"):
        go_on({"attention": "sdpa"})
    go_on({"attention": {"kind": "trial-window", "width": 6}})


def test_a_mechanism_outside_of_models_is_not_published() -> None:
    class Elsewhere(Slot):
        """Its module is outside of models/."""

        builds: ClassVar[str] = "tests.models.mechanisms:WindowAttention"
        kind: Literal["elsewhere"] = "elsewhere"

    with registered(GPTConfig, "attention", Elsewhere):
        config = GPTConfig.model_validate({**SHAPE, "attention": "elsewhere"})
        with pytest.raises(UsageError, match=r"is outside of fromscratch\.models"):
            model_code_files(config)


def test_a_mechanism_that_forgets_to_count_is_told() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(TypeError, match=r"Scale owns parameters and must have forward_flops\(context_length\)"):
        forward_flops(nn.Sequential(nn.Linear(2, 2), Scale()), 8)
