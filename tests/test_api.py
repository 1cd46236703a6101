"""The Python interface."""

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fromscratch
from fromscratch.cli.classify import tune
from fromscratch.cli.evaluate import loss
from fromscratch.cli.finetune import instruct
from fromscratch.cli.plan import plan
from fromscratch.cli.study import run as study_run
from fromscratch.cli.train import train
from fromscratch.errors import UsageError
from fromscratch.studies.jobs import held_out_losses
from fromscratch.training.profiling import TRACE_FILE
from tests.command import run_command
from tests.conftest import REPOSITORY
from tests.finetuning.small import FORMAT, make_base
from tests.small import write_run_file
from tests.studies.planted import NO_DROPOUT, write_study

TEXT = "The sea was calm and the ships went out in the morning. " * 200


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, fromscratch; print('torch' in sys.modules, 'numpy' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3


def test_every_name_is_there_and_documented() -> None:
    for name in fromscratch.__all__:
        assert getattr(fromscratch, name).__doc__ and name in dir(fromscratch)
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has Classifier, Model"):
        _ = fromscratch.nothing
    page = (REPOSITORY / "docs" / "python.md").read_text("utf-8")
    assert all(f"{name}(" in page or f"`{name}`" in page for name in fromscratch.__all__)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fromscratch.Run:
    file = write_run_file(tmp_path_factory.mktemp("api"))
    stopped = fromscratch.train(file, runs_dir=file.parent / "runs", device="cpu", stop_after=6)
    assert stopped.summary is not None and stopped.summary.outcome == "stopped"
    return fromscratch.train(file, runs_dir=file.parent / "runs", device="cpu")


TERMINAL = {"as_json", "quiet"}
"""Options of the command line that only its output depends on."""
OTHER_NAMES = {
    "allow_change": "allowed_changes",
    "prompt_format": "prompt",
    "runfile": "run_file",
    "study": "study_file",
}


@pytest.mark.parametrize(
    ("function", "command", "left_out"),
    [
        (fromscratch.train, train, {"processes"}),  # a script is started by torchrun
        (fromscratch.finetune_instruct, instruct, {"processes"}),
        (fromscratch.finetune_classify, tune, {"processes"}),
        (fromscratch.run_study, study_run, {"dry_run", "machines"}),
        (fromscratch.plan, plan, set[str]()),
        (fromscratch.Model.evaluate, loss, {"processes", "model", "device"}),  # load_model takes these two
    ],
)
def test_a_function_takes_the_options_of_its_command(
    function: Callable[..., Any], command: Callable[..., Any], left_out: set[str]
) -> None:
    options = {OTHER_NAMES.get(name, name) for name in inspect.signature(command).parameters}
    assert options - TERMINAL - left_out <= set(inspect.signature(function).parameters)


def test_machine_options_reach_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    file, runs_dir, told = write_run_file(tmp_path, train={"report_to": ["wandb"]}), tmp_path / "runs", list[str]()
    options: dict[str, Any] = {"runs_dir": runs_dir, "device": "cpu", "stop_after": 6, "tell": told.append}
    machine: dict[str, Any] = {"micro_batch": 2, "activation_checkpointing": True, "deterministic": False}
    run = fromscratch.train(file, profile=1, dollars_per_hour=3.0, **machine, **options)
    recorded = json.loads(run.directory.machine.read_text())
    assert machine == {key: recorded[key] for key in machine} and (run.path / TRACE_FILE).is_file()
    assert any("report_to wandb: wandb: its package is not installed" in line for line in told)
    assert json.loads(run.directory.cost.read_text())["sessions"][0]["dollars_per_hour"] == 3.0
    with pytest.raises(UsageError, match="divided among several processes; add --processes N, or start them with"):
        fromscratch.train(file, name="divided", shard="on", **options)
    with pytest.raises(UsageError, match="shard = 'yes': must be auto, on, off"):
        fromscratch.train(file, name="divided", shard="yes", **options)  # type: ignore[arg-type]


def test_a_run_and_the_command_line_see_the_same(run: fromscratch.Run) -> None:
    listed = json.loads(run_command("runs", "list", "--runs-dir", run.path.parent, "--json").out)
    assert [one["name"] for one in listed] == [run.name] and listed[0]["best_loss"] == run.overview.best_loss
    opened = fromscratch.open_run(run.name, runs_dir=run.path.parent)
    assert opened.summary is None and opened.config == run.config and 20 in opened.checkpoints
    with pytest.raises(UsageError, match="no such run"):
        fromscratch.open_run("nothing")


def test_metrics_are_a_frame_where_pandas_is(run: fromscratch.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    plain = run.metrics()
    assert [record["step"] for record in plain] == list(range(1, 21))

    class Pandas:
        DataFrame = staticmethod(lambda records: ("frame", records))

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    assert run.metrics() == ("frame", plain) and run.events()[0] == "frame"


def test_overrides_reach_the_run(run: fromscratch.Run) -> None:
    changes: dict[str, Any] = {"train.clip": {"kind": "none"}, "data.tokens": 320, "eval.prompts": ["a", 'b"']}
    other = fromscratch.train(
        run.path.parent.parent / "small.toml", name="other", runs_dir=run.path.parent, overrides=changes, device="cpu"
    )
    assert other.config.train.clip.kind == "none" and other.config.eval.prompts == ("a", 'b"')


def test_a_model_generates_evaluates_and_publishes(run: fromscratch.Run, tmp_path: Path) -> None:
    model = run.load_model("latest", device="cpu")
    pieces: list[str] = []
    text = model.generate("a", max_new_tokens=5, temperature=0, on_text=pieces.append)
    assert "".join(pieces) == text and model.parameters == 10_960
    command = run_command("generate", run.path, "a", "--tokens", 5, "--temperature", 0, "--json", "--device", "cpu")
    assert json.loads(command.out)["text"] == f"a{text}"
    report = model.evaluate(tokens=300)
    measured = run_command("eval", "loss", f"{run.path}@latest", "--tokens", 300, "--json", "--device", "cpu")
    assert json.loads(measured.out)["loss"] == report.loss
    model.publish(tmp_path / "out")
    assert fromscratch.load_model(tmp_path / "out", device="cpu").generate("a", max_new_tokens=5, temperature=0) == text


def test_numbers_that_the_command_line_refuses_are_refused(run: fromscratch.Run, tmp_path: Path) -> None:
    model = run.load_model()
    with pytest.raises(UsageError, match="max_new_tokens = -5: must be 0 or more"):
        model.generate("a", max_new_tokens=-5)
    with pytest.raises(UsageError, match="start = -5: must be 0 or more"):
        model.evaluate(start=-5)
    for tokens in (0, -1):
        with pytest.raises(UsageError, match=f"tokens = {tokens}: must be 1 or more"):
            model.evaluate(tokens=tokens)
    file = write_run_file(tmp_path)
    with pytest.raises(UsageError, match="stop_after = 0: must be a step, 1 or more"):
        fromscratch.train(file, runs_dir=tmp_path / "runs", stop_after=0, device="cpu")
    with pytest.raises(UsageError, match="jobs = 0: must be at least 1"):
        fromscratch.run_study(write_study(tmp_path), runs_dir=tmp_path / "runs", jobs=0)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "text.txt").write_text("some words")
    for share in (2, 1, -0.1, float("nan")):
        with pytest.raises(UsageError, match=f"validation = {share}: must be a share"):
            fromscratch.prepare(tmp_path / "text.txt", tmp_path / "prepared", tokenizer="bytes", validation=share)
    assert not (tmp_path / "prepared").exists()


def test_metrics_are_a_real_frame(run: fromscratch.Run) -> None:
    pandas = pytest.importorskip("pandas")
    frame = run.metrics()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["step"]) == list(range(1, 21)) and frame["loss"].iloc[-1] < frame["loss"].iloc[0]


def test_train_tells_what_it_decides_and_allows_changes(run: fromscratch.Run, tmp_path: Path) -> None:
    fromscratch.prepare(
        write_text(tmp_path), tmp_path / "store", tokenizer="bytes", validation=0.0, tell=list[str]().append
    )
    told: list[str] = []
    file = write_run_file(tmp_path)
    fromscratch.train(file, runs_dir=tmp_path / "runs", device="cpu", stop_after=1, tell=told.append)
    assert any("holds out no text" in line for line in told)
    changed: dict[str, Any] = {"overrides": {"model.dropout": 0.1}, "runs_dir": tmp_path / "runs"}
    with pytest.raises(UsageError, match=r"model.dropout: 0.2 -> 0.1"):
        fromscratch.train(file, device="cpu", tell=told.append, **changed)
    continued = fromscratch.train(file, device="cpu", tell=told.append, allowed_changes=["model.dropout"], **changed)
    assert continued.config.model.dropout == 0.1 and continued.checkpoints


def write_text(folder: Path) -> Path:
    (folder / "text.txt").write_text(TEXT)
    return folder / "text.txt"


def test_a_checkpoint_by_its_step_and_the_tokenizer_of_a_model(run: fromscratch.Run, tmp_path: Path) -> None:
    step = min(run.checkpoints)
    model = run.load_model(step, device="cpu")
    assert model.loaded.step == step and model.config == run.config.model
    with pytest.raises(UsageError, match="no checkpoint 'step-3'"):
        run.load_model(3, device="cpu")
    store = fromscratch.prepare(
        write_text(tmp_path), tmp_path / "store", tokenizer=model.tokenizer, tell=list[str]().append
    )
    assert store.manifest.tokenizer["fingerprint"] == model.tokenizer.fingerprint


def test_a_name_on_the_hub_is_no_folder(run: fromscratch.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = run.load_model(device="cpu")
    monkeypatch.chdir(tmp_path)
    listed = model.publish("hf://me/small")
    assert (listed.repository, listed.uploaded, listed.folder) == ("me/small", False, None)
    assert "model.safetensors" in listed.files and list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="not a repository's name"):
        model.publish("hf:me")
    with pytest.raises(UsageError, match="need a Hub repository"):
        model.publish(tmp_path / "out", private=True)


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setattr(sys, "argv", ["first_run.py", str(tmp_path / "text.txt"), str(tmp_path), "20"])
    monkeypatch.syspath_prepend(REPOSITORY / "docs" / "examples")
    importlib.import_module("first_run")
    printed = capsys.readouterr().out
    assert "20 steps recorded" in printed and "bits per byte" in printed and printed.endswith("native\n")


def test_a_plan_and_a_comparison_are_what_the_command_line_prints(run: fromscratch.Run, tmp_path: Path) -> None:
    file = run.path.parent.parent / "small.toml"
    estimate = fromscratch.plan(file, overrides={"data.tokens": 1280}, machines=["here"])
    printed = json.loads(
        run_command("plan", file, "--set", "data.tokens=1280", "--machine", "here", "--json").out,
    )
    assert estimate.science.costs.parameters == printed["parameters"] == 10_960
    assert estimate.science.num_steps == printed["steps"] == 10
    with pytest.raises(UsageError, match="mars"):
        fromscratch.plan(file, machines=["mars"])
    fromscratch.train(file, name="seed-7", runs_dir=run.path.parent, overrides={"train.seed": 7}, device="cpu")
    both = fromscratch.compare([run.name, run.path.parent / "seed-7"], runs_dir=run.path.parent)
    assert both.config == {"train.seed": {run.name: run.config.train.seed, "seed-7": 7}}
    compared = json.loads(run_command("compare", run.name, "seed-7", "--runs-dir", run.path.parent, "--json").out)
    assert compared["config"] == both.config
    assert [one["final_loss"] for one in compared["runs"]] == [one.final_loss for one in both.runs]
    with pytest.raises(UsageError, match="names one run"):
        fromscratch.compare([run.path, run.path])


def test_a_study_runs_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    file = write_study(tmp_path, interventions=NO_DROPOUT)
    told: list[str] = []
    runs_dir = tmp_path / "runs"
    study = fromscratch.run_study(file, runs_dir=runs_dir, device="cpu", jobs=2, tell=told.append)
    assert study.outcome is not None and not study.outcome.has_failed and len(told) == 8
    assert {arm: len(runs) for arm, runs in study.runs.items()} == {"baseline": 2, "no-dropout": 2}
    opened = fromscratch.open_study(file, runs_dir=runs_dir)
    assert opened.outcome is None and opened.losses() == study.losses()
    first = fromscratch.open_run(opened.runs["baseline"][0])
    assert opened.losses()["baseline"][1] == held_out_losses(first.directory)[20]
    (arm,) = opened.judge().result.arms
    assert arm.effect is not None and len(opened.judge().result.control.losses) == 2
    assert len(opened.judge(seeds=1).result.control.losses) == 1
    status = json.loads(run_command("study", "status", file, "--runs-dir", runs_dir, "--json").out)
    assert status["verdicts"]["arms"][0]["effect"] == arm.effect == opened.to_dict()["arms"][0]["effect"]
    written = opened.report()
    assert written.measured_on == "validation slice" and written.page.is_file() and opened.folder.read() == {}
    assert written.judgement.result.arms[0].effect == arm.effect
    with pytest.raises(UsageError, match="must be at least 1"):
        opened.judge(seeds=0)
    with pytest.raises(UsageError, match="no such study file"):
        fromscratch.open_study(tmp_path / "none.toml")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a very small model in ``runs/base``, records, and texts of two classes."""
    monkeypatch.chdir(tmp_path)
    make_base(tmp_path)
    rows = [f"animal,{i} cat" for i in range(20)] + [f"colour,{i} red" for i in range(20)]
    Path("texts.csv").write_text("\n".join(["label,text", *rows]))
    return tmp_path


def test_instructions_as_the_command_does(base: Path) -> None:
    settings: dict[str, Any] = {
        "prompt": FORMAT,
        "epochs": 2,
        "learning_rate": 0.003,
        "overrides": {"train.precision": "fp32"},
    }
    told: list[str] = []
    settings |= {"micro_batch": 2, "activation_checkpointing": True, "dollars_per_hour": 3.0}
    run = fromscratch.finetune_instruct("base", "records.json", device="cpu", tell=told.append, **settings)
    assert run.name == "base-instruct" and run.summary is not None and run.summary.outcome == "done"
    machine = json.loads(run.directory.machine.read_text())
    assert (machine["micro_batch"], machine["activation_checkpointing"]) == (2, True)
    words = ("--format", FORMAT, "--epochs", 2, "--learning-rate", 0.003, "--set", "train.precision=fp32", "-q")
    typed = run_command("finetune", "instruct", "base", "--data", "records.json", "--device", "cpu", *words)
    assert typed.code == 0 and "is finished" not in typed.out  # the same run: no step was taken
    assert len(run.metrics()) == run.overview.num_steps
    report = fromscratch.respond(
        run.load_model(), "runs/base-instruct/split/test.json", "answers.json", max_new_tokens=8
    )
    answers = json.loads(Path("answers.json").read_text())
    assert report.records == len(answers) == 6 and all("model_response" in one for one in answers)
    assert run.load_model().prompt_format is not None
    with pytest.raises(UsageError, match="does not say which prompt format"):
        fromscratch.respond("base", "records.json", "other.json")


def test_classifiers_as_the_command_does(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 4, "learning_rate": 0.01, "overrides": {"train.precision": "fp32"}}
    run = fromscratch.finetune_classify(
        "base",
        "texts.csv",
        name="kinds",
        train_examples=24,
        device="cpu",
        micro_batch=4,
        tell=lambda _text: None,
        **settings,
    )
    assert json.loads(run.directory.machine.read_text())["micro_batch"] == 4
    classifier = fromscratch.load_classifier(run.path, device="cpu")
    assert classifier.classes == ("animal", "colour")
    assert classifier.report == json.loads((run.path / "classification.json").read_text())
    (found,) = classifier.classify("7 red")
    typed = run_command("classify", "kinds", "7 red", "--json", "--device", "cpu")
    assert found == json.loads(typed.out) and found["text"] == "7 red"
    assert [one["text"] for one in classifier.classify(["a", "b"])] == ["a", "b"]
    published = classifier.publish(tmp_path / "published")
    again = fromscratch.load_classifier(str(published.folder))
    assert again.report is None
    assert again.classify("7 red")[0]["probabilities"] == pytest.approx(found["probabilities"], abs=1e-5)
    with pytest.raises(UsageError, match="is a language model"):
        fromscratch.load_classifier("base")
