"""The commands on a recurrent model: from one text to its samples, and one sentence where a command cannot."""

import json
from pathlib import Path

import pytest

from tests.command import refused, run_command

TEXT = "the cat sees the dog and the dog sees the red house.\n" * 120
RUN_FILE = """
[model]
kind = "lstm"
preset = "min-char-rnn"
hidden_dim = 16
[data]
store = "store"
tokens = "all"
epochs = 2
[train]
global_batch = 8
precision = "fp32"
optimizer = { kind = "adamw", learning_rate = 0.02 }
[eval]
prompts = ["the "]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "text.txt").write_text(TEXT)
    (folder / "run.toml").write_text(RUN_FILE)
    store = ("--out", folder / "store", "--tokenizer", "bytes:occurring", "--validation", "0")
    prepared = run_command("data", "prepare", f"whole:{folder / 'text.txt'}", *store, "--workers", 1, "--json")
    assert prepared.code == 0 and json.loads(prepared.out)["tokenizer"]["vocab_size"] == len(set(TEXT)) + 1
    trained = run_command("train", folder / "run.toml", "--runs-dir", folder / "runs", "--name", "r", "--device", "cpu")
    assert trained.code == 0, trained.err
    assert "the last 10% of every lane is held out" in trained.err and "8 lanes of 795 tokens" in trained.err
    return folder


def test_the_run_has_a_sample_of_each_epoch(lab: Path) -> None:
    run = lab / "runs" / "r"
    steps = 28
    sections = (run / "samples.txt").read_text().split("=== ")
    assert [part.partition("\n")[0] for part in sections[1:]] == [f"step {n} ===" for n in (0, steps, 2 * steps)]
    assert all(part.partition("\n")[2].startswith("the ") for part in sections[1:])
    listed = json.loads(run_command("runs", "list", "--runs-dir", lab / "runs", "--json").out)
    assert listed[0]["step"] == 2 * steps and "ends of the lanes" in listed[0]["best_measure"]


def test_generate_with_a_temperature_and_a_primer_beyond_the_context(lab: Path) -> None:
    words = ("generate", lab / "runs" / "r", "-p", "the dog sees the red house.\n", "--device", "cpu", "--tokens", 80)
    cold, again, warm = (run_command(*words, "--temperature", t, "--seed", 1) for t in (0.2, 0.2, 1.5))
    assert cold.code == 0 and "sees only the last" not in cold.err
    assert cold.out == again.out != warm.out and cold.out.startswith("the dog sees the red house.\n")
    assert len(cold.out.rstrip("\n")) > 60
    refused(*words[:3], "zoo", code=2, says="holds the byte 0x7a (in 'zoo')")


def test_eval_loss_measures_what_the_run_held_out(lab: Path) -> None:
    run = lab / "runs" / "r"
    report = json.loads(run_command("eval", "loss", run, "--device", "cpu", "--json").out)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    best = min(event["loss"] for event in events if event["event"] == "evaluation")
    assert report["split"] == "lanes" and report["tokens"] == 8 * 3 * 25
    assert report["loss"] == pytest.approx(best, abs=1e-5)
    assert report["bits_per_byte"] == pytest.approx(best / 0.6931472, rel=1e-4)
    slice_of_it = run_command("eval", "loss", run, "--split", "train", "--start", 100, "--tokens", 333, "--json")
    assert json.loads(slice_of_it.out)["tokens"] == 333
    refused("eval", "loss", run, "--start", 5, code=2, says="the ends of the lanes are measured from their first token")


def test_two_recurrent_runs_are_compared_on_what_both_held_out(lab: Path) -> None:
    runs = lab / "runs"
    train = ("train", lab / "run.toml", "--runs-dir", runs, "--device", "cpu", "-q", "--stop-after", 28)
    for name, key in (("wide", "model.hidden_dim=24"), ("fifth", "data.validation_share=0.2")):
        assert run_command(*train, "--name", name, "--set", key).code == 75
    report = json.loads(run_command("eval", "compare", runs / "r", runs / "wide", "--device", "cpu", "--json").out)
    losses = [
        json.loads(run_command("eval", "loss", runs / name, "--device", "cpu", "--json").out)["loss"]
        for name in ("r", "wide")
    ]
    comparison = report["comparison"]
    assert report["split"] == "lanes" and report["tokens"] == 8 * 3 * 25
    assert [comparison["a"]["loss"], comparison["b"]["loss"]] == pytest.approx(losses, abs=1e-6)
    assert comparison["difference"] == pytest.approx(losses[1] - losses[0], abs=1e-6)
    documents = comparison["documents"]
    assert len(documents) == 5 and all(one["tokens"] == 3 * 25 and one["text"] in TEXT for one in documents)
    assert all(TEXT[one["first_token"] :].startswith(one["text"]) for one in documents)
    refused("eval", "compare", runs / "r", runs / "fifth", code=2, says="held out different text; name a split")
    refused("eval", "compare", runs / "r", runs / "wide", "--split", "validation", code=3, says="has 0 tokens")


def test_it_is_planned_before_it_is_trained(lab: Path) -> None:
    plan = json.loads(run_command("plan", lab / "run.toml", "--machine", "here", "--json").out)
    gates = 4 * 16 * (len(set(TEXT)) + 1 + 16 + 2)
    assert plan["steps"] == 56 and plan["parameters"] == gates + 17 * (len(set(TEXT)) + 1)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("publish", "RUN", "--to", "FOLDER/published"), 2, "knows only the bytes of one text"),
        (("train", "FILE", "--name", "x", "--activation-checkpointing"), 2, "cannot recompute activations"),
        (("train", "FILE", "--name", "x", "--set", 'eval.prompts=["zoo"]'), 2, "eval.prompts, 'zoo'"),
        (("train", "FILE", "--name", "x", "--set", "model.context_length=9000"), 3, "but the run needs 144,008"),
        (("train", "FILE", "--name", "x", "--set", "model.kind=lsmt"), 2, "did you mean 'lstm'"),
        (("bench", "FILE", "--reference", "--steps", 1), 2, "have no reference recipe"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(lab: Path, words: tuple[object, ...], code: int, says: str) -> None:
    places = {"RUN": str(lab / "runs" / "r"), "FILE": str(lab / "run.toml"), "FOLDER/published": str(lab / "published")}
    runs = ("--runs-dir", lab / "runs") if words[0] == "train" else ()
    refused(*(places.get(str(word), word) for word in words), *runs, code=code, says=says)
