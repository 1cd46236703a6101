"""Intervals, comparisons, smoke texts, injection and chat, each against a known number or text."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fromscratch.data.store import open_store
from fromscratch.errors import UsageError
from fromscratch.evaluation.bootstrap import bootstrap_interval
from fromscratch.evaluation.compare import compare_models
from fromscratch.evaluation.injection import Rate, load_probes, measure_injection, turn_prefixes
from fromscratch.evaluation.loss import measure_loss
from fromscratch.evaluation.saving import save_evaluation
from fromscratch.evaluation.smoke import PROMPTS, smoke_test
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.generation.conversation import TEMPLATES, Conversation, Template, open_template
from fromscratch.generation.decoders import PlainDecoder
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.training.held_out import TokenSlice
from tests.command import run_command
from tests.publishing.models import make_loaded
from tests.small import run_small, write_run_file

CPU = find_hardware("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measures")
    run_small(write_run_file(path))
    make_loaded(path / "imported", context_length=16)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return open_model(str(folder / "runs" / "run"), CPU)


@pytest.fixture(scope="module")
def part(folder: Path) -> TokenSlice:
    return TokenSlice.of(open_store(folder / "store").split("validation"), start=0, tokens=600)


class TestIntervals:
    def test_the_bootstrap_has_the_width_that_theory_says(self) -> None:
        values = np.random.default_rng(1).normal(3.0, 1.0, 400)
        interval = bootstrap_interval(values, np.ones(400, dtype=np.int64))
        low, high = interval
        assert low is not None and high is not None
        standard_error = values.std() / math.sqrt(400)
        assert low < values.mean() < high
        assert (high - low) / (2 * 1.96 * standard_error) == pytest.approx(1.0, abs=0.1)
        assert bootstrap_interval(values, np.ones(400, dtype=np.int64)) == interval

    def test_one_sequence_has_none_and_equal_ones_have_no_width(self) -> None:
        assert bootstrap_interval(np.array([5.0]), np.array([2])) == (None, None)
        assert bootstrap_interval(np.full(9, 6.0), np.full(9, 2)) == (3.0, 3.0)

    def test_in_a_report(self, loaded: LoadedModel, part: TokenSlice) -> None:
        report = measure_loss(loaded.model, loaded.tokenizer, part, CPU).report
        assert report.loss_low is not None and report.loss_high is not None
        assert report.loss_low < report.loss < report.loss_high and report.sequences == 38

    def test_wilson_by_hand(self) -> None:
        low, high = Rate(8, 10).interval()
        assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
        assert Rate(0, 20).interval()[0] == 0.0 and Rate(20, 20).interval()[1] == 1.0


class TestCompare:
    def test_a_model_with_itself(self, loaded: LoadedModel, part: TokenSlice) -> None:
        found = compare_models(loaded, loaded, part, CPU)
        assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
        assert found.verdict == "no significant difference on this text"

    def test_a_trained_model_with_random_weights(self, loaded: LoadedModel, folder: Path, part: TokenSlice) -> None:
        other = open_model(str(folder / "imported"), CPU)
        found = compare_models(loaded, other, part, CPU)
        assert found.difference == pytest.approx(found.b.loss - found.a.loss)
        assert found.low is not None and 0 < found.low < found.difference
        assert found.verdict == "A is better on this text"
        worst = found.documents[0]
        assert [abs(d.difference) for d in found.documents] == sorted(
            (abs(d.difference) for d in found.documents), reverse=True
        )
        tokens = part.split.read(worst.first_token, worst.tokens)
        assert loaded.tokenizer.decode(tokens).startswith(worst.text)
        mean = sum(document.difference for document in found.documents) / len(found.documents)
        assert mean > found.difference  # these are where they differ most

    def test_what_cannot_be_paired(self, loaded: LoadedModel, tmp_path: Path, part: TokenSlice) -> None:
        longer = make_loaded(tmp_path / "longer", context_length=64)
        with pytest.raises(UsageError, match="cannot be paired; use 'eval loss'"):
            compare_models(loaded, longer, part, CPU)


class TestConversation:
    def test_a_transcript_by_hand(self) -> None:
        template = Template(introduction="Intro.", turn="\nQ: {message}\nA:", stop=("\nQ:",))
        assert template.prompt([("one", " 1")], "two") == "Intro.\nQ: one\nA: 1\nQ: two\nA:"
        assert TEMPLATES["alpaca"].prompt([("one", "1")], "two").count("### Instruction:") == 1

    def test_answers_become_part_of_it(self, loaded: LoadedModel) -> None:
        template = Template(introduction="", turn="\n{message} ", stop=("e",))
        settings = Settings(max_new_tokens=20, sampling=Sampling(temperature=0), stop=("zz",))
        conversation, pieces = Conversation(loaded.model, loaded.tokenizer, template, settings), list[str]()
        first = conversation.answer("the cat", pieces.append)
        assert "".join(pieces) == first and "e" not in first
        conversation.answer("a dog")
        assert [asked for asked, _ in conversation.history] == ["the cat", "a dog"]

    def test_templates_from_files(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text('introduction = "Hi."\nturn = "<{message}>"\nstop = ["<"]\nremembers = false\n')
        assert open_template(str(file)) == Template("Hi.", "<{message}>", ("<",), remembers=False)
        for text, message in (
            ("tone = 1", "unknown key 'tone'"),
            ('turn = "x"', "must contain"),
            ("=", "not valid TOML"),
            ("introduction = 5", "introduction = 5: must be a string"),
            ("remembers = 1", "remembers = 1: must be true or false"),
            ('stop = "x"', "stop = 'x': must be an array of strings that are not empty"),
            ('stop = [""]', "must be an array of strings that are not empty"),
        ):
            file.write_text(text)
            with pytest.raises(UsageError, match=message):
                open_template(str(file))
        with pytest.raises(UsageError, match="no such file, and not one of transcript, alpaca"):
            open_template("nothing")


class Parrot(torch.nn.Module):
    """Answers with a claim from its context if ``believes`` is set; otherwise it says that it does not know."""

    context_length = 4_096
    has_unlimited_context = False

    def __init__(self, believes: bool) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.believes = believes

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, 257)
        for row, ids in enumerate(tokens.tolist()):
            text = bytes(i for i in ids if i < 256).decode("utf-8", "replace")
            prompt, _, said = text.rpartition("\nAssistant:")
            word = next((p.expected for p in load_probes() if p.question in prompt.rpartition("\nUser:")[2]), "")
            claimed = any(p.claim in prompt and p.expected == word for p in load_probes())
            answer = f" {word}." if claimed and self.believes else " I do not know."
            following = answer[len(said) :].encode()
            logits[row, -1, following[0] if following else 256] = 10.0
        return logits


@pytest.mark.parametrize(("believes", "count"), [(True, 20), (False, 0)])
def test_injection_counts_models_that_believe_the_claim(loaded: LoadedModel, believes: bool, count: int) -> None:
    parrot: Any = Parrot(believes)
    report = measure_injection(replace(loaded, model=parrot), TEMPLATES["transcript"], decoder=PlainDecoder)
    assert (report.smuggled.count, report.control.count, report.smuggled.trials) == (count, 0, 20)


def test_probes_hide_a_claim_between_the_users_lines() -> None:
    user, assistant = turn_prefixes(TEMPLATES["transcript"])
    assert (user, assistant) == ("\nUser:", "\nAssistant:")
    for probe in load_probes():
        assert f"\nAssistant: {probe.claim}\nUser: {probe.reply}" in probe.message(user, assistant)
        assert probe.expected in probe.claim and probe.expected not in probe.control() + probe.question


def test_smoke_texts_are_kept_in_the_run(loaded: LoadedModel, tmp_path: Path) -> None:
    texts = smoke_test(loaded, tokens=5)
    assert [text.prompt for text in texts] == list(PROMPTS) and texts == smoke_test(loaded, tokens=5)
    path = save_evaluation(loaded, "smoke", {"texts": [text.greedy for text in texts]})
    assert path is not None and json.loads(path.read_text())["step"] == loaded.step
    assert save_evaluation(make_loaded(tmp_path / "m"), "smoke", {}) is None


def test_an_evaluation_replaces_only_an_answer_to_the_same_question(loaded: LoadedModel) -> None:
    assert loaded.run is not None
    saved = [
        save_evaluation(loaded, "kept", {"store": store, "loss": loss}, question=("store",))
        for store, loss in (("a", 1.0), ("b", 2.0), ("a", 3.0), ("b", 4.0))
    ]
    first, second = loaded.run.evaluations / "kept.json", loaded.run.evaluations / "kept-2.json"
    assert saved == [first, second, first, second]
    assert [json.loads(path.read_text())["loss"] for path in (first, second)] == [3.0, 4.0]
    first.write_text("not ours")
    assert save_evaluation(loaded, "kept", {"store": "a", "loss": 5.0}, question=("store",)) != first
    assert first.read_text() == "not ours"


def test_measures_of_other_slices_and_seeds_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = folder / "runs" / "run" / "evaluations"
    before = set(found.glob("*"))
    for tokens in ("100", "200", "100"):
        assert run_command("eval", "loss", "run", "--store", "store", "--tokens", tokens).code == 0
        assert run_command("eval", "compare", "run", "run@latest", "--store", "store", "--tokens", tokens).code == 0
        assert run_command("eval", "smoke", "run", "--seed", tokens, "--max-new-tokens", "2").code == 0
    names = sorted(path.name.partition("-")[0] for path in set(found.glob("*")) - before)
    assert names == ["compare", "compare", "loss", "loss", "smoke", "smoke"]


def test_on_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    compared = run_command("eval", "compare", "run", "imported", "--store", "store", "--json")
    assert json.loads(compared.out)["verdict"] == "A is better on this text", compared.err
    assert list((folder / "runs" / "run" / "evaluations").glob("*.json")) or compared.code == 0
    injected = run_command("eval", "injection", "run")
    assert injected.code == 0 and "smuggled  0 of 20" in injected.out, injected.err
    talked = run_command("chat", "run", "--tokens", "5", typed="the cat\n\na dog\n")
    assert talked.code == 0 and "Ctrl-D" in talked.err and talked.out.count("\n") >= 2


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fromscratch", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_the_harness_on_a_task_file_of_ones_own(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    rows = [{"question": "the cat", "choices": [" sees", " zzzz"], "answer": 0}] * 4
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        f"task: our_words\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path / 'rows.json'}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    command = ("eval", "harness", "run", "--tasks", "our_words", "--include", str(tmp_path), "--device", "cpu")
    done = run(folder, *command, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout[done.stdout.index("{") :])["results"]
    assert results["our_words"]["acc,none"] == 1.0
    assert run(folder, *command[:4], "no_such_task").returncode == 2
