"""A tuning run is a run: steps, resume, early stopping, files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.finetuning.records import read_records, to_exchanges
from fromscratch.finetuning.splits import split_records
from fromscratch.formats.checkpoints import MODEL_FILE
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.stores import held_out_store_of
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records as read_lines
from fromscratch.training.observers import SilentObserver
from tests.finetuning.small import FORMAT, make_base, make_records, tune


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    make_base(folder)
    return folder


def weights(run: RunDirectory, checkpoint: str = "latest") -> dict[str, torch.Tensor]:
    return read_tensors((run.checkpoints / checkpoint).resolve() / MODEL_FILE)


def losses(run: RunDirectory) -> list[float]:
    return [record["loss"] for record in read_lines(run.metrics)]


def evaluations(run: RunDirectory) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_lines(run.events) if r["event"] == "evaluation"]


def test_validation_loss_falls_and_the_run_is_a_model(base: Path) -> None:
    run, summary = tune(base, "falls")
    found = evaluations(run)
    assert summary.outcome == "done" and [step for step, _ in found] == [0, 6, 12, 18, 24]
    assert found[-1][1] < 0.8 * found[0][1]
    loaded = open_model(str(run.path), find_hardware("cpu"))
    assert loaded.prompt_format is not None and loaded.prompt_format.turn_with_input == FORMAT
    assert loaded.step == summary.best_step


def test_f10_a_resumed_run_is_bit_identical_with_dropout(base: Path) -> None:
    whole, _ = tune(base, "whole")
    for step in (1, 7, 12):
        run, summary = tune(base, f"stopped-{step}", stop_after=step)
        assert summary.outcome == "stopped" and summary.step == step
        run, summary = tune(base, f"stopped-{step}")
        assert summary.outcome == "done" and summary.first_step == step
        assert losses(run) == losses(whole)
        assert evaluations(run) == evaluations(whole)
        for name, tensor in weights(whole).items():
            assert torch.equal(tensor, weights(run)[name]), name


class Killer(SilentObserver):
    """Ends the process's training without a save, as a kill does."""

    def on_step(self, record: dict[str, Any]) -> None:
        if record["step"] == 10:
            raise SystemExit


def test_f10_a_killed_run_resumes_at_its_last_checkpoint_bit_for_bit(base: Path) -> None:
    whole, _ = tune(base, "unkilled")
    with pytest.raises(SystemExit):
        tune(base, "killed", observers=(Killer(),))
    run, summary = tune(base, "killed")
    assert summary.first_step == 6 and summary.step == 24
    assert losses(run) == losses(whole)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(whole).items())


def test_eval_loss_of_a_tuned_run_asks_for_a_store(base: Path) -> None:
    run, _ = tune(base, "eval", stop_after=1)
    with pytest.raises(UsageError, match="was tuned on records, so --store must name"):
        held_out_store_of(open_model(str(run.path), find_hardware("cpu")))


def test_the_real_instructions_are_read_and_split(shared_data: Path) -> None:
    folder = shared_data / "instructions"
    exchanges = to_exchanges(read_records(folder / "instruction-data.json"))
    split = split_records([e.question() for e in exchanges], validation=0.05, test=0.1, seed=42, where="f")
    assert split.repeated == 25
    assert (len(exchanges), len(split.train), len(split.validation), len(split.test)) == (1100, 936, 54, 110)
    assert len(to_exchanges(read_records(folder / "instruction-data-with-response.json"))) == 110


def test_the_micro_batch_changes_only_rounding(base: Path) -> None:
    whole, _ = tune(base, "micro-8", "train.evaluate_every=24", "tune.mask_prompt=true")
    parts, _ = tune(base, "micro-2", "train.evaluate_every=24", "tune.mask_prompt=true", micro_batch=2)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(parts) != losses(tune(base, "no-dropout", "tune.dropout=0.0", "tune.mask_prompt=true")[0])


def test_early_stopping_keeps_the_best_weights_and_ends_the_run(base: Path) -> None:
    settings = ("train.optimizer.learning_rate=0.05", "data.epochs=40", "train.evaluate_every=3", "tune.patience=2")
    run, summary = tune(base, "early", *settings)
    found = [(loss, step) for step, loss in evaluations(run) if step]
    best = min(found)[1]
    assert summary.outcome == "done" and summary.best_step == best
    assert summary.step == best + 2 * 3 < summary.num_steps
    assert f"since step {best}" in run.read_status().reason
    assert open_model(str(run.path), find_hardware("cpu")).step == best
    _, repeated = tune(base, "early", *settings)
    assert repeated.outcome == "done" and repeated.first_step == repeated.step == summary.step


def test_early_stopping_is_the_same_after_a_resume(base: Path) -> None:
    settings = ("train.optimizer.learning_rate=0.05", "data.epochs=40", "train.evaluate_every=3", "tune.patience=2")
    whole, summary = tune(base, "early-whole", *settings)
    tune(base, "early-stopped", *settings, stop_after=summary.step - 1)
    run, resumed = tune(base, "early-stopped", *settings)
    assert resumed.step == summary.step and evaluations(run) == evaluations(whole)


def test_the_run_keeps_its_split(base: Path) -> None:
    run, _ = tune(base, "split", stop_after=1)
    parts = {
        name: json.loads((run.path / "split" / f"{name}.json").read_text()) for name in ("train", "validation", "test")
    }
    assert {name: len(part) for name, part in parts.items()} == {"train": 51, "validation": 3, "test": 6}
    key = lambda record: record["instruction"]  # noqa: E731
    assert sorted((r for part in parts.values() for r in part), key=key) == sorted(make_records(), key=key)


def test_other_records_are_another_run(base: Path) -> None:
    tune(base, "same", stop_after=1)
    changed = make_records()
    changed[0]["output"] = "something else"
    copy = base / "other.json"
    shutil.copy(base / "records.json", copy)
    tune(base, "same", "data.store=other.json", stop_after=2)  # the same content under another name
    copy.write_text(json.dumps(changed))
    with pytest.raises(DataError, match="belongs to another run"):
        tune(base, "same", "data.store=other.json")


def test_patience_needs_a_checkpoint_at_every_evaluation(base: Path) -> None:
    with pytest.raises(
        UsageError, match=r"tune\.patience = 2 needs a checkpoint at every evaluation.*checkpoint_every = 4"
    ):
        tune(base, "patience", "train.evaluate_every=3", "train.checkpoint_every=4")


def test_a_run_file_with_tune_trains_too(base: Path) -> None:
    from fromscratch.session.plan import plan_run

    (base / "tune.toml").write_text(
        '[data]\nstore = "records.json"\nepochs = 1\n[train]\nstart_from = "base"\nglobal_batch = 8\n'
        '[tune]\nkind = "instruct"\nprompt = "chatml"\n'
    )
    plan = plan_run(base / "tune.toml")
    assert plan.num_steps == 6 and plan.config.tune is not None and plan.config.tune.prompt.ending == "<|im_end|>\n"
    with pytest.raises(UsageError, match=r"\[model\] differs"):
        plan_run(base / "tune.toml", ["model.num_layers=3"])


def test_lora_trains_additions_only_and_opens_merged(base: Path) -> None:
    pytest.importorskip("peft")
    settings = ("tune.lora={ rank = 2 }", "tune.dropout=0.0")
    run, _ = tune(base, "lora", *settings)
    found, before = weights(run), weights(RunDirectory(base / "runs" / "base"), "best")
    plain = {name.replace(".base_layer", ""): t for name, t in found.items() if "lora" not in name}
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.items())
    assert any(tensor.abs().sum() > 0 for name, tensor in found.items() if "lora_B" in name)
    first = evaluations(run)[0][1]
    assert first == evaluations(tune(base, "lora-off", "tune.dropout=0.0", stop_after=1)[0])[0][1]
    merged = open_model(str(run.path), find_hardware("cpu")).model
    name = "blocks.0.attention.output"
    best = weights(run, "best")
    change = best[f"{name}.lora_B.default.weight"] @ best[f"{name}.lora_A.default.weight"] * (16 / 2)
    expected = before[f"{name}.weight"] + change
    torch.testing.assert_close(merged.get_parameter(f"{name}.weight"), expected)
    tune(base, "lora-stopped", *settings, stop_after=7)
    stopped, _ = tune(base, "lora-stopped", *settings)
    assert losses(stopped) == losses(run)


def test_lora_without_peft_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match=r"needs the package peft: pip install"):
        tune(base, "no-peft", "tune.lora={ rank = 2 }")


def test_the_config_records_everything(base: Path) -> None:
    run, _ = tune(base, "recorded", stop_after=1)
    text = run.config.read_text()
    assert "[tune.prompt]" in text and "evaluate_every = 6" in text and "checkpoint_every = 6" in text
    manifest = read_json_object((run.checkpoints / "latest").resolve() / "manifest.json")
    assert len(manifest["identity"]) == 64
