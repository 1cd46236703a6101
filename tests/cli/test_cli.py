"""The command line as a user meets it: exit codes and streams, in this process and in one of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fromscratch import errors
from fromscratch.training.observers import ProgressBar, ProgressLines
from tests.command import nothing_written, refused, run_command
from tests.conftest import REPOSITORY
from tests.publishing.models import make_loaded
from tests.small import SMALL_RUN, make_store, write_run_file

VERBS = [
    ["quickstart"],
    ["train"],
    ["fit"],
    ["bench"],
    ["generate"],
    ["data"],
    ["data", "prepare"],
    ["eval"],
    ["eval", "loss"],
    ["eval", "compare"],
    ["eval", "smoke"],
    ["eval", "injection"],
    ["eval", "harness"],
    ["chat"],
    ["runs"],
    ["runs", "list"],
    ["runs", "show"],
    ["runs", "verify"],
    ["runs", "clean"],
    ["import"],
    ["publish"],
]


def in_a_process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fromscratch", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the small run was trained by a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    write_run_file(folder)
    result = in_a_process("train", "small.toml", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["outcome"] == "done" and summary["step"] == 20 and summary["tokens_per_second"] > 0
    return folder


@pytest.fixture
def trained(_trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, the current one of the test."""
    monkeypatch.chdir(_trained)
    return _trained


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_of_every_verb(verb: list[str]) -> None:
    answer = run_command(*verb, "--help")
    assert answer.code == 0 and answer.err == ""
    if verb not in (["data"], ["eval"], ["runs"]):
        assert "Example: fromscratch" in answer.out


def test_in_a_process_of_its_own(_trained: Path) -> None:
    """Exit codes and streams are those that the other tests find in this process."""
    version = in_a_process("--version", cwd=_trained)
    assert re.fullmatch(r"fromscratch \d+\.\d+\.\d+\n", version.stdout) and version.stderr == ""
    help_of_a_verb = in_a_process("train", "--help", cwd=_trained)
    assert help_of_a_verb.returncode == 0 and help_of_a_verb.stderr == ""
    assert "Example: fromscratch" in help_of_a_verb.stdout
    missing = in_a_process("train", "missing.toml", cwd=_trained)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("error: ") and missing.stderr.count("\n") == 1
    assert "Traceback" in in_a_process("train", "missing.toml", "--debug", cwd=_trained).stderr


def test_evaluate_and_generate(trained: Path) -> None:
    reports = [
        json.loads(run_command("eval", "loss", "small", "--store", "store", "--batch", batch, "--json").out)
        for batch in ("1", "32")
    ]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], abs=1e-6)
    assert {"loss", "perplexity", "bits_per_byte", "tokens", "bytes", "seconds"} <= reports[0].keys()
    assert list((trained / "runs" / "small" / "evaluations").glob("loss-*.json"))
    arguments = ("generate", "runs/small", "--prompt", "the cat", "--tokens", "20", "--seed", "3")
    texts = [run_command(*arguments).out, in_a_process(*arguments, cwd=trained).stdout]
    assert texts[0].splitlines() == texts[1].splitlines() and texts[0].startswith("the cat")


def test_b23_long_and_empty_prompts(trained: Path) -> None:
    long = run_command("generate", "small", "--prompt", "the cat " * 10, "--tokens", "3")
    assert long.code == 0 and "sees only the last 16" in long.err
    assert run_command("generate", "small", "--tokens", "5").code == 0
    assert run_command("generate", "small", "--tokens", "0", "-p", "a").out == "a\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "missing.toml"], 2, "no such run file"),
        (["train", "small.toml", "--set", "train.lr_rate=1"], 2, "did you mean 'train.optimizer.learning_rate'"),
        (["train", "small.toml", "--set", "train.global_batch=0"], 2, "train.global_batch = 0"),
        (["train", "small.toml", "--set", "train.seed=true"], 2, "train.seed = true"),
        (["train", "small.toml", "--set", "train.optimizer.learning_rate=inf"], 2, "must be a finite number"),
        (["train", "small.toml", "--name", "x7", "--micro-batch", "3"], 2, "valid values are 1, 2, 4, 8"),
        (["train", "small.toml", "--name", "x8", "--set", "train.schedule.warmup_steps=50"], 2, "only 20"),
        (["train", "small.toml", "--name", "../x"], 2, "run name '../x'"),
        (["train", "small.toml", "--name", ""], 2, "run name ''"),
        (
            ["train", "small.toml", "--name", "x14", "--set", "data.tokens=10_000_000"],
            3,
            "10,958 tokens but the run needs 10,000,001",
        ),
        (["train", "small.toml", "--name", "x6", "--set", "model.vocab_size=10"], 2, "below the 257 ids"),
        (["train", "small.toml", "--name", "xd", "--device", "quantum"], 2, "--device quantum"),
        (["generate", "small", "--temperature", "-1"], 2, "temperature = -1.0"),
        (["generate", "small", "--top-k", "0"], 2, "top-k = 0"),
        (["generate", "small", "--top-p", "2"], 2, "top-p = 2.0"),
        (["generate", "nobody"], 2, "no such run or checkpoint"),
        (["eval", "loss", "small", "--store", "nowhere"], 3, "'fromscratch data pull hf://owner/name --out nowhere'"),
        (["eval", "loss", "small", "--store", "store", "--split", "test"], 3, "no split 'test'"),
        (["data", "prepare", "nothing-here", "--out", "s", "--tokenizer", "bytes"], 2, "no such file or folder"),
        (["data", "prepare", "small.toml", "--out", "store", "--tokenizer", "bytes"], 2, "already a finished store"),
        (["data", "prepare", "small.toml", "--out", "s", "--tokenizer", "train:3"], 2, "at least 258"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    trained: Path, arguments: list[str], code: int, message: str
) -> None:
    before = sorted(str(p) for p in trained.rglob("*"))
    refused(*arguments, code=code, says=message)
    assert sorted(str(p) for p in trained.rglob("*")) == before


def test_b18_a_store_of_another_tokenizer_names_both(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words to learn from, some words to read\n\n" * 600)
    made = run_command("data", "prepare", text, "--out", tmp_path / "other", "--tokenizer", "train:300")
    assert made.code == 0, made.err
    answer = run_command("eval", "loss", "small", "--store", tmp_path / "other", "--split", "train")
    assert answer.code == 3
    assert "bytes (257 ids)" in answer.err and "bpe-" in answer.err


def test_fresh_sets_the_old_run_aside(trained: Path) -> None:
    arguments = ("train", "small.toml", "--name", "twice", "--set", "data.tokens=512", "-q")
    assert run_command(*arguments).code == 0
    assert run_command(*arguments, "--fresh").code == 0
    assert (trained / "runs" / "twice.old-1" / "checkpoints" / "latest").exists()
    assert (trained / "runs" / "twice" / "checkpoints" / "latest").exists()


def test_stop_after_and_the_same_command_again(trained: Path) -> None:
    arguments = ("train", "small.toml", "--name", "halves", "--json")
    stopped = run_command(*arguments, "--stop-after", "7")
    assert stopped.code == 75 and json.loads(stopped.out)["step"] == 7
    assert run_command(*arguments).code == 0


def test_after_stop_after_another_command_continues(trained: Path) -> None:
    arguments = ("train", "small.toml", "--name", "bounded", "--json")
    how = "to continue, leave it out or give a higher step"
    first = run_command(*arguments, "--stop-after", "7")
    assert first.code == 75 and f"stopped at step 7 of 20 because of --stop-after 7; {how}" in first.err
    again = run_command(*arguments, "--stop-after", "7")
    assert again.code == 75 and f"--stop-after 7, no step was taken; {how}" in again.err
    assert "the same command" not in first.err + again.err and "continuing at" not in first.err
    resumed = run_command(*arguments)
    assert resumed.code == 0 and resumed.err.count("continuing at step 7 of 20") == 1
    assert json.loads(resumed.out)["first_step"] == 7 and "no step was taken" not in resumed.err


@pytest.mark.parametrize("kind", [ProgressBar, ProgressLines])
def test_every_terminal_shows_where_a_run_continues(
    capsys: pytest.CaptureFixture[str], kind: type[ProgressBar | ProgressLines]
) -> None:
    for step in (0, 7):
        observer = kind()
        observer.begin(step=step, num_steps=20)
        observer.end()
        assert ("continuing at step 7 of 20" in capsys.readouterr().err) is (step == 7)


def test_a_finished_run_says_so(trained: Path) -> None:
    answer = run_command("train", "small.toml")
    assert answer.code == 0
    assert "is finished, all 20 steps were taken before; no step was taken now" in answer.err
    assert "no step" not in run_command("train", "small.toml", "--quiet").err


@pytest.mark.parametrize("evaluate_every", [3, 0])
def test_the_best_loss_before_the_first_checkpoint(trained: Path, evaluate_every: int) -> None:
    never = ("--set", "train.checkpoint_every=0", "--set", f"train.evaluate_every={evaluate_every}")
    name = f"early-{evaluate_every}"
    stopped = run_command("train", "small.toml", "--name", name, *never, "--stop-after", "8")
    assert stopped.code == 75
    printed = {float(loss): step for step, loss in re.findall(r"step (\d+): held-out loss ([\d.]+)", stopped.err)}
    if evaluate_every:
        best = min(printed)
        wanted = f"{best:.4f} at step {printed[best]} (at most 320 tokens of split 'validation')"
        assert f"best held-out loss   {wanted}\n" in stopped.out and len(printed) == 3
    else:
        assert "best mean training loss  unknown" in stopped.out


def test_evaluations_of_steps_that_are_taken_again_do_not_count(trained: Path) -> None:
    arguments = ("train", "small.toml", "--name", "repeated", "--json", "--set", "train.checkpoint_every=0")
    assert run_command(*arguments, "--stop-after", "6").code == 75
    with (trained / "runs" / "repeated" / "events.jsonl").open("a") as file:
        file.write('{"event": "evaluation", "step": 10, "loss": 0.1}\n')
    summary = json.loads(run_command(*arguments, "--stop-after", "8").out)
    assert summary["step"] == 8 and summary["best_step"] == 5 and summary["best_loss"] > 1


def test_every_exit_code_is_documented() -> None:
    codes = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {"75", "130"} <= codes
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    for text in (readme, run_command("--help").out):
        listed = re.split("Exit codes:", text)[1].split(". ")[0]
        assert codes <= set(re.findall(r"\b\d+\b", listed)), listed
    assert "130" in run_command("train", "--help").out


def test_interrupt_from_the_keyboard(tmp_path: Path) -> None:
    make_store(tmp_path / "store", documents=3_000)
    train = {**SMALL_RUN["train"], "checkpoint_every": 0, "evaluate_every": 0}
    write_run_file(tmp_path, data={"tokens": 1_000 * 128}, train=train)
    process = subprocess.Popen(
        [sys.executable, "-m", "fromscratch", "train", "small.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.stat().st_size > 0):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command continues" in errors
    assert json.loads((tmp_path / "runs" / "small" / "status.json").read_text())["state"] == "stopped"


def test_b42_a_closed_pipe_and_plain_text(trained: Path) -> None:
    command = f"{sys.executable} -m fromscratch eval loss small --store store --json | head -c 1"
    result = subprocess.run(command, shell=True, cwd=trained, capture_output=True, text=True, check=False, timeout=100)
    assert "BrokenPipe" not in result.stderr and result.stdout == "{"
    plain = in_a_process("train", "small.toml", cwd=trained, LANG="C", NO_COLOR="1")
    assert "\x1b" not in plain.stdout + plain.stderr


def test_chat_says_when_the_conversation_is_cut_and_survives_half_a_character(tmp_path: Path) -> None:
    make_loaded(tmp_path / "model")
    command = [sys.executable, "-m", "fromscratch", "chat", "model", "--tokens", "2", "--device", "cpu"]
    strict = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    typed = b"caf\xc3\nhello\n" + "\u00e9\n".encode()
    done = subprocess.run(command, input=typed, cwd=tmp_path, env=strict, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"from now on the model sees the last 32") == 1  # told once, not for every message


def test_generate_takes_the_text_as_an_argument_and_other_tools_option(tmp_path: Path) -> None:
    make_loaded(tmp_path / "model")
    one = run_command("generate", tmp_path / "model", "a text", "--max-new-tokens", 3, "--json")
    other = run_command("generate", tmp_path / "model", "--prompt", "a text", "--tokens", 3, "--json")
    assert one.code == 0 and one.out == other.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, shell))
    (tmp_path / ".bashrc").write_text("mine=1\n")
    (tmp_path / ".zshrc").write_text("mine=1\n")
    for _ in range(2):
        done = run_command("--install-completion")
        assert done.code == 0 and f"{shell} completion installed" in done.out, done
    scripts = {path for path in tmp_path.rglob("*fromscratch*") if path.is_file()}
    assert len(scripts) == 1 and "_FROMSCRATCH_COMPLETE" in scripts.pop().read_text()
    for start_file in (".bashrc", ".zshrc"):
        assert (tmp_path / start_file).read_text().startswith("mine=1\n")
    assert (tmp_path / ".bashrc").read_text().count("source") == (shell == "bash")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    shown = run_command("--show-completion")
    assert shown.code == 0 and "_FROMSCRATCH_COMPLETE" in shown.out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("typed", "completed"), [("fromscratch data st", "stats"), ("fromscratch train --micro", "--micro-batch")]
)
def test_completion_completes(monkeypatch: pytest.MonkeyPatch, typed: str, completed: str) -> None:
    monkeypatch.setenv("_FROMSCRATCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert run_command().out.split() == [completed]


def test_a_picture_in_the_place_of_another_file_is_refused_before_the_work(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    for verb in (("bench", file), ("data", "stats", tmp_path / "store")):
        with nothing_written(tmp_path):
            refused(*verb, "--picture", file, code=2, says=f"--picture {file}: exists already")
