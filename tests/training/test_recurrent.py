"""Recurrent models in the one loop: the state goes from batch to batch, survives a resume, and begins anew."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fromscratch.config.loading import read_run_config
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.store import open_store
from fromscratch.errors import UsageError
from fromscratch.evaluation.loss import measure_loss
from fromscratch.formats.checkpoints import read_state
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event
from fromscratch.session.plan import plan_run
from fromscratch.sources.base import InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.training.held_out import LANES_OF_A_SLICE, HeldOutLanes, TokenSlice, mean_loss, sequence_losses
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Runtime
from tests.small import run_small, write_run_file
from tests.training.test_resume import assert_same_end

LANES, TIME, HIDDEN = 4, 16, 12
LSTM = f'kind = "lstm"\ncontext_length = {TIME}\nhidden_dim = {HIDDEN}\nnum_layers = 2\ndropout = 0.2\n'
DATA = {"tokens": "all", "epochs": 2, "start_token": 9_000, "validation_share": 0.1}
TRAIN = {
    "global_batch": LANES,
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "schedule": {"kind": "constant"},
    "clip": {"kind": "value", "max_value": 5.0},
}
CPU = torch.device("cpu")


def run_file(folder: Path, name: str = "small", *, model: str = LSTM, **tables: dict[str, Any]) -> Path:
    tables |= {"data": DATA | tables.get("data", {}), "train": TRAIN | tables.get("train", {})}
    file = write_run_file(folder, name, **tables)
    text = file.read_text()
    begin, end = text.index("[model]"), text.index("[data]")
    text = f"{text[:begin]}[model]\n{model}\n{text[end:]}"
    for key in ("evaluate_every = 5\n", "checkpoint_every = 5\n"):
        text = text.replace(key, "")
    file.write_text(text)
    return file


def metrics(run: RunDirectory) -> list[float]:
    return [record["loss"] for record in read_records(run.metrics)]


def evaluations(run: RunDirectory) -> dict[int, float]:
    found = (record for record in read_records(run.events) if record["event"] == Event.EVALUATION)
    return {record["step"]: record["loss"] for record in found}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lanes")
    _, summary = run_small(run_file(folder), name="untouched")
    assert summary.outcome == "done"
    return folder


def read_lanes(folder: Path) -> tuple[Tensor, int]:
    """The text of each lane [lanes, tokens], and the sequences of each that are trained on."""
    split = open_store(folder / "store").split("train")
    length = (split.tokens - 9_000) // LANES
    lanes = torch.from_numpy(split.read(9_000, LANES * length).reshape(LANES, length))
    whole = (length - 1) // TIME
    return lanes, whole - round(0.1 * whole)


def test_training_equals_a_plain_loop_over_lanes_in_two_epochs(tmp_path: Path) -> None:
    """torch's own stack and optimiser, a state that is detached after every step and zero at the start of an epoch."""
    run, _ = run_small(run_file(tmp_path, model=LSTM.replace("0.2", "0.0")))
    lanes, steps = read_lanes(tmp_path)
    plan = plan_run(tmp_path / "small.toml")
    stack, linear = nn.LSTM(257, HIDDEN, num_layers=2, batch_first=True), nn.Linear(HIDDEN, 257)
    parameters = [*stack.parameters(), *linear.parameters()]
    model = build_empty(plan.config.model, CPU)
    initialise(model, plan.config.model, seed=42)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), parameters, strict=True):
            theirs.copy_(mine)
    optimizer, wanted = torch.optim.SGD(parameters, lr=0.1, momentum=0.9), []
    for _ in range(2):
        state = None
        for step in range(steps):
            ids = lanes[:, step * TIME : (step + 1) * TIME + 1]
            hidden, state = stack(F.one_hot(ids[:, :-1], 257).float(), state)
            state = tuple(part.detach() for part in state)
            loss = F.cross_entropy(linear(hidden).flatten(0, 1), ids[:, 1:].flatten())
            wanted.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(parameters, 5.0)
            optimizer.step()
    assert len(wanted) == 2 * steps > 20
    assert metrics(run) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("place", ["within an epoch", "at the start of an epoch", "one step later"])
def test_f10_it_resumes_with_its_state_to_the_bit(untouched: Path, place: str) -> None:
    file, steps = untouched / "small.toml", read_lanes(untouched)[1]
    step = {"within an epoch": 5, "at the start of an epoch": steps, "one step later": steps + 1}[place]
    run_small(file, name=f"stopped-{step}", stop_after=step)
    resumed, summary = run_small(file, name=f"stopped-{step}")
    whole = RunDirectory(untouched / "runs" / "untouched")
    assert summary.outcome == "done"
    assert_same_end(resumed, whole)
    carries = [read_tensors(run.checkpoints / "latest" / "carry.safetensors") for run in (resumed, whole)]
    assert carries[0].keys() == {"hidden", "cell"} and carries[0]["cell"].shape == (LANES, 2, HIDDEN)
    assert all(torch.equal(carries[0][name], carries[1][name]) and bool(carries[0][name].any()) for name in carries[0])


def test_the_micro_batch_changes_nothing(untouched: Path) -> None:
    divided, _ = run_small(untouched / "small.toml", name="divided", micro_batch=1)
    whole = RunDirectory(untouched / "runs" / "untouched")
    assert metrics(divided) == pytest.approx(metrics(whole), abs=1e-5)
    assert evaluations(divided) == pytest.approx(evaluations(whole), abs=1e-5)


def test_the_held_out_loss_is_that_of_the_ends_of_the_lanes(untouched: Path) -> None:
    loaded = open_model(str(untouched / "runs" / "untouched") + "@latest", find_hardware("cpu"))
    lanes, steps = read_lanes(untouched)
    tail = lanes[:, steps * TIME :]
    tail = tail[:, : (tail.shape[1] - 1) // TIME * TIME + 1][:, : 320 // (LANES * TIME) * TIME + 1]  # eval.tokens
    with torch.inference_mode():
        wanted = loaded.model.losses(tail[:, :-1], tail[:, 1:]).mean()
    run = RunDirectory(untouched / "runs" / "untouched")
    found = evaluations(run)
    assert list(found) == [0, steps, 2 * steps]  # once per epoch
    assert found[2 * steps] == pytest.approx(float(wanted), abs=1e-5)


def test_each_epoch_ends_with_an_evaluation_a_sample_and_a_checkpoint(untouched: Path) -> None:
    run, steps = RunDirectory(untouched / "runs" / "untouched"), read_lanes(untouched)[1]
    events = list(read_records(run.events))
    assert [record["epoch"] for record in events if record["event"] == Event.EVALUATION] == [0, 1, 2]
    for name in (Event.EVALUATION, Event.SAMPLE):
        assert [record["step"] for record in events if record["event"] == name] == [0, steps, 2 * steps]
    assert [record["step"] for record in events if record["event"] == Event.CHECKPOINT] == [steps, 2 * steps]
    resolved = read_run_config(run.config)
    assert resolved.train.evaluate_every == resolved.train.checkpoint_every == resolved.train.sample_every == steps
    assert resolved.data.validation_share == 0.1 and "ends of the lanes" in resolved.best_measure


def test_patience_ends_the_run_after_epochs_without_a_better_loss(tmp_path: Path) -> None:
    file = run_file(
        tmp_path,
        data={"epochs": 30},
        train={"patience": 2, "optimizer": {"kind": "adamw", "learning_rate": 0.1}},
    )
    run, summary = run_small(file)
    found, steps = evaluations(run), read_lanes(tmp_path)[1]
    best = min((loss, step) for step, loss in found.items() if step)[1]
    assert summary.outcome == "done" and summary.best_step == best
    assert summary.step == best + 2 * steps < summary.num_steps == 30 * steps
    assert open_model(str(run.path), find_hardware("cpu")).step == best
    with pytest.raises(UsageError, match=r"train.patience = 2 needs a checkpoint at every evaluation"):
        plan_run(file, ["train.evaluate_every=3", "train.checkpoint_every=4"])


def test_a_step_that_is_held_back_at_the_start_of_an_epoch_still_begins_a_text(tmp_path: Path) -> None:
    """All steps are skipped: the state is never that of the end of the epoch before."""
    file = run_file(
        tmp_path,
        train={
            "optimizer": {"kind": "sgd", "learning_rate": 1e38},
            "nonfinite": {"kind": "skip", "max_in_a_row": 10_000},
        },
    )
    steps = read_lanes(tmp_path)[1]
    run, _ = run_small(file, stop_after=steps + 1)
    assert read_state(run.checkpoints / "latest").nonfinite_in_a_row > 0
    carry = read_tensors(run.checkpoints / "latest" / "carry.safetensors")
    assert not any(bool(part.any()) for part in carry.values())


@pytest.mark.parametrize("tokens", [5, 100, LANES_OF_A_SLICE * TIME * 3 + 2 * TIME + 7])
def test_a_slice_is_read_as_long_texts_every_token_once_and_in_order(untouched: Path, tokens: int) -> None:
    loaded = open_model(str(untouched / "runs" / "untouched"), find_hardware("cpu"))
    part = TokenSlice.of(open_store(untouched / "store").split("validation"), start=3, tokens=tokens)
    found = []
    for micro_batch in (1, 3, 64):
        runtime = Runtime(CPU, micro_batch, Precision("fp32", CPU))
        pairs = list(sequence_losses(loaded.model, part, runtime))
        assert np.concatenate([targets.ravel() for targets, _ in pairs]).tolist() == part.split.read(4, tokens).tolist()
        found.append(np.concatenate([losses.ravel() for _, losses in pairs]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    lanes = max(1, min(LANES_OF_A_SLICE, tokens // TIME))
    each = max(1, tokens // TIME) // lanes * TIME
    ids = torch.from_numpy(part.split.read(3, tokens + 1))[None]
    bounds = [lane * each for lane in range(lanes)] + [tokens]
    with torch.inference_mode():
        rows = [(ids[:, begin:end], ids[:, begin + 1 : end + 1]) for begin, end in pairwise(bounds)]
        wanted = [loaded.model.losses(*row)[0] for row in rows]
    np.testing.assert_allclose(found[0], torch.cat(wanted).numpy(), atol=1e-5)
    report = measure_loss(loaded.model, loaded.tokenizer, part, find_hardware("cpu")).report
    assert report.loss == pytest.approx(found[0].mean(), abs=1e-5) and report.tokens == tokens
    assert mean_loss(loaded.model, part, Runtime(CPU, 2, Precision("fp32", CPU))) == pytest.approx(
        report.loss, abs=1e-6
    )


def test_what_is_held_out_by_default(tmp_path: Path) -> None:
    """The store's validation split; where it has none, the ends of the lanes, and the user is told."""
    file = run_file(tmp_path)
    file.write_text(file.read_text().replace("validation_share = 0.1\n", ""))
    plan = plan_run(file)
    assert plan.config.data.validation_share == 0.0 and len(plan.notices) == 1
    assert isinstance(plan.objective, NextToken) and isinstance(plan.objective.held_out, TokenSlice)
    text = ("the cat sees the dog and the dog sees the cat. " * 50,)
    prepare_store([InMemory("one", text)], BytesTokenizer(), tmp_path / "whole", rule=SplitRule(0.0))
    plan = plan_run(file, ["data.store=whole", "data.start_token=0"])
    assert plan.config.data.validation_share == 0.1
    assert isinstance(plan.objective, NextToken) and isinstance(plan.objective.held_out, HeldOutLanes)
    assert "holds out no text, so the last 10% of every lane is held out" in plan.notices[0]
    assert re.search(r"4 lanes of 587 tokens: an epoch takes 32 sequences of 16 .* the last 4 of each", plan.notices[1])
    assert not plan_run(
        file, ["data.store=whole", "data.start_token=0", "train.evaluate_every=0"]
    ).objective.is_evaluated


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.shuffle=true", "data.shuffle: a recurrent model reads its lanes in order"),
        ("eval.start=5", "data.validation_share = 0.1 evaluates on the ends of the lanes; remove eval.store"),
        ("model.num_heads=2", "model.num_heads: unknown key"),
        ("model.context_length=9999", "lower data.start_token, train.global_batch or model.context_length"),
    ],
)
def test_settings_without_effect_are_refused(untouched: Path, override: str, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence) as caught:
        plan_run(untouched / "small.toml", [override])
    assert type(caught.value).__name__ in ("UsageError", "DataError")


def test_lanes_are_for_recurrent_models(untouched: Path) -> None:
    with pytest.raises(UsageError, match=r"data.validation_share: only recurrent models read lanes"):
        plan_run(write_run_file(untouched, "gpt", data={"validation_share": 0.1}))
