"""Held-out loss: the same number however it is computed, and the right one."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.data.store import open_store
from fromscratch.errors import DataError, UsageError
from fromscratch.evaluation.compressors import compressor_bits_per_byte, text_of
from fromscratch.evaluation.loss import measure_loss
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.runs.directory import RunDirectory
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.training.held_out import TokenSlice
from tests.command import refused, run_command
from tests.publishing.models import make_loaded
from tests.small import run_small, write_run_file

CPU: Hardware = find_hardware("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    run_small(write_run_file(path))
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return open_model(str(folder / "runs" / "run"), CPU)


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_the_batch_size_changes_nothing(loaded: LoadedModel, folder: Path, batch: int) -> None:
    part = TokenSlice.of(open_store(folder / "store").split("validation"), start=5, tokens=333)
    reference = measure_loss(loaded.model, loaded.tokenizer, part, CPU).report
    other = measure_loss(loaded.model, loaded.tokenizer, part, CPU, batch=batch).report
    assert other.loss == pytest.approx(reference.loss, abs=1e-6)
    assert (other.tokens, other.bytes) == (333, reference.bytes)


def test_loss_and_bits_per_byte_by_hand(loaded: LoadedModel, folder: Path) -> None:
    split = open_store(folder / "store").split("validation")
    report = measure_loss(loaded.model, loaded.tokenizer, TokenSlice.of(split, start=3, tokens=40), CPU).report
    tokens = torch.from_numpy(split.read(3, 41))
    losses = [
        torch.nn.functional.cross_entropy(
            loaded.model(tokens[begin:end][None])[0], tokens[begin + 1 : end + 1], reduction="sum"
        ).item()
        for begin, end in ((0, 16), (16, 32), (32, 40))
    ]
    assert report.loss == pytest.approx(sum(losses) / 40, abs=1e-5)
    assert report.perplexity == pytest.approx(math.exp(report.loss))
    text_bytes = int((tokens[1:] != 256).sum())
    assert report.bytes == text_bytes
    assert report.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / text_bytes, abs=1e-5)


def test_evaluating_draws_nothing_at_random_and_changes_no_mode(loaded: LoadedModel, folder: Path) -> None:
    part = TokenSlice.of(open_store(folder / "store").split("validation"), start=0, tokens=100)
    loaded.model.train()
    state = torch.get_rng_state()
    one = measure_loss(loaded.model, loaded.tokenizer, part, CPU).report.loss
    assert loaded.model.training and torch.equal(torch.get_rng_state(), state)
    assert measure_loss(loaded.model.eval(), loaded.tokenizer, part, CPU).report.loss == one


def test_a_slice_beyond_the_end_is_refused(folder: Path) -> None:
    split = open_store(folder / "store").split("validation")
    assert TokenSlice.of(split, start=0, tokens=None).tokens == split.tokens - 1
    with pytest.raises(DataError, match="needs at least"):
        TokenSlice.of(split, start=split.tokens - 1, tokens=None)


def test_text_of_a_split_and_what_compressors_make_of_it(folder: Path) -> None:
    store = open_store(folder / "store")
    text = text_of(store.split("validation"), BytesTokenizer())
    documents = store.manifest.splits["validation"].documents
    assert text.count(b"\n") == documents - 1
    assert len(text) == store.manifest.splits["validation"].bytes + documents - 1
    rates = compressor_bits_per_byte(text)
    assert 0 < rates["xz"] < 8 and 0 < rates["gzip"] < 8


class TestModelSources:
    def test_names_of_the_same_weights(self, folder: Path) -> None:
        runs = folder / "runs"
        best = open_model(str(runs / "run"), CPU)
        assert open_model("run", CPU, runs_dir=runs).checkpoint == best.checkpoint
        assert open_model("run@best", CPU, runs_dir=runs).step == best.step
        assert open_model("run@latest", CPU, runs_dir=runs).step == 20
        assert open_model("run@step-15", CPU, runs_dir=runs).step == 15
        assert open_model(str(runs / "run" / "checkpoints" / "step-00000020"), CPU).step == 20
        assert not best.model.training

    def test_what_is_not_there(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="no such run or checkpoint"):
            open_model("nothing", CPU, runs_dir=folder)
        with pytest.raises(UsageError, match="no checkpoint 'step-3'; the run has step-15, step-20"):
            open_model("run@step-3", CPU, runs_dir=folder / "runs")
        with pytest.raises(UsageError, match="neither a run directory nor a checkpoint nor an exported folder"):
            open_model(str(folder / "store"), CPU)

    def test_f7_a_damaged_checkpoint_named_by_the_user_is_an_error(self, folder: Path, tmp_path: Path) -> None:
        file = write_run_file(tmp_path)
        run, _ = run_small(file)
        weights = run.checkpoints / "latest" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(DataError, match=r"model.safetensors: \d+ bytes, but manifest.json says"):
            open_model(f"{run.path}@step-20", CPU)
        with pytest.raises(DataError, match=r"the latest checkpoint is damaged .* name another: step-15"):
            open_model(f"{run.path}@latest", CPU)

    def test_what_is_chosen_for_the_user_is_told(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = RunDirectory(Path(shutil.copytree(folder / "runs" / "run", tmp_path / "run", symlinks=True)))
        (run.checkpoints / "best").unlink()
        (run.checkpoints / "step-00000020" / "state.json").write_text("{}")
        assert open_model(str(run.path), CPU).step == 15
        taken = "has no best checkpoint; taking step-00000015, the newest that is valid"
        assert taken in caplog.text
        done = run_command("generate", run.path, "a", "--tokens", 1)
        assert (done.code, taken in done.err) == (0, True)

    @pytest.mark.parametrize("link", [None, "step-00000003", "../../elsewhere"])
    def test_a_best_checkpoint_that_is_named_and_missing_is_an_error(
        self, folder: Path, tmp_path: Path, link: str | None
    ) -> None:
        run = RunDirectory(Path(shutil.copytree(folder / "runs" / "run", tmp_path / "run", symlinks=True)))
        (run.checkpoints / "best").unlink()
        if link:
            (run.checkpoints / "best").symlink_to(link)
        refused("generate", f"{run.path}@best", code=3, says="no best checkpoint; name another: step-15, step-20")

    def test_the_short_name_of_a_model(self, loaded: LoadedModel, tmp_path: Path) -> None:
        for source, name in (
            ("owner/name", "name"),
            ("hf://owner/name@refs/pr/1", "name"),
            ("gpt2", "gpt2"),
            (f"{tmp_path}/someone@example.org/model", "model"),
        ):
            assert replace(loaded, source=source, run=None).name == name
        (tmp_path / "me@home").mkdir()
        assert replace(loaded, source=str(tmp_path / "me@home"), run=None).name == "me@home"

    def test_an_at_sign_in_a_folder_is_part_of_its_name(self, folder: Path, tmp_path: Path) -> None:
        drive = tmp_path / "GoogleDrive-someone@example.org" / "My Drive"
        shutil.copytree(folder / "runs" / "run", drive / "run", symlinks=True)
        shutil.copytree(folder / "runs" / "run", drive / "run@home", symlinks=True)
        assert open_model(str(drive / "run"), CPU).name == "run"
        assert open_model(str(drive / "run@step-15"), CPU).step == 15
        assert open_model(str(drive / "run@home"), CPU).step == open_model(str(drive / "run@home@step-20"), CPU).step


class TestSeveralProcesses:
    """The same slice through the real command line, alone and shared."""

    def report(self, folder: Path, *arguments: str, launcher: tuple[str, ...] = (sys.executable, "-m")) -> Any:
        words = ("eval", "loss", "runs/run", "--store", "store", "--tokens", "333", "--device", "cpu", "--json")
        ended = subprocess.run(
            [*launcher, "fromscratch", *words, *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def test_batch_size_and_world_size_change_nothing(self, loaded: LoadedModel, folder: Path) -> None:
        part = TokenSlice.of(open_store(folder / "store").split("validation"), start=0, tokens=333)
        alone = asdict(measure_loss(loaded.model, loaded.tokenizer, part, CPU).report)
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
        shared = self.report(folder, "--batch", "1", "--processes", "2")
        uneven = self.report(folder, "--batch", "3", launcher=torchrun)
        for report in (shared, uneven):
            assert (report["tokens"], report["bytes"], report["sequences"]) == (333, alone["bytes"], alone["sequences"])
            for name in ("loss", "loss_low", "loss_high", "bits_per_byte"):
                assert report[name] == pytest.approx(alone[name], abs=1e-6)

    def test_bad_input_is_told_once(self, folder: Path) -> None:
        command = [sys.executable, "-m", "fromscratch", "eval", "loss", "runs/no", "--store", "store"]
        ended = subprocess.run(
            [*command, "--processes", "2"], cwd=folder, capture_output=True, text=True, check=False, timeout=100
        )
        assert ended.returncode == 2
        assert ended.stderr.count("no such run or checkpoint") == 1 and len(ended.stderr.splitlines()) == 1


class TestTheStoreOfTheRun:
    """``eval`` without ``--store`` takes the store that the run evaluates on."""

    def test_loss_and_compare(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = folder / "runs" / "run"
        named = run_command("eval", "loss", run, "--store", folder / "store", "--json")
        monkeypatch.chdir(tmp_path)
        own = run_command("eval", "loss", run, "--json")
        assert own.code == 0, own.err
        assert json.loads(own.out)["loss"] == json.loads(named.out)["loss"]
        compared = run_command("eval", "compare", run, f"{run}@step-15", "--json")
        assert compared.code == 0, compared.err
        assert {path.name for path in (run / "evaluations").glob("compare-*")} == {
            "compare-step-20-with-run.json",
            "compare-step-15-with-run.json",
        }

    def test_a_store_that_is_gone_and_a_model_without_a_run(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder / "runs" / "run", tmp_path / "deep" / "down" / "run", symlinks=True)
        machine = tmp_path / "deep" / "down" / "run" / "machine.json"
        machine.write_text(machine.read_text().replace(str((folder / "store").resolve()), "/gone"))
        refused("eval", "loss", tmp_path / "deep" / "down" / "run", code=2, says="/gone is not on this machine")
        make_loaded(tmp_path / "model")
        refused("eval", "loss", tmp_path / "model", code=2, says="--store must name the store")
