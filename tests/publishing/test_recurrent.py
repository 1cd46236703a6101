"""Recurrent models outside of this package, and as classifiers of texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fromscratch.config.recurrent import RecurrentConfig
from fromscratch.config.run import parse_model
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.factory import build_empty, initialise
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import choose_format, export_model
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.command import refused, run_command
from tests.finetuning.test_classify import CLASSES, check_published, write_texts
from tests.small import run_small
from tests.training.test_recurrent import LSTM, run_file

transformers = pytest.importorskip("transformers")
TOKENS = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(3))  # longer than the context
KINDS = [("lstm", "torch", None), ("lstm", "explicit", 8), ("gru", "torch", 8), ("rnn", "explicit", None)]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    kind, implementation, width = request.param
    table = {"kind": kind, "implementation": implementation, "vocab_size": 257, "context_length": 16, "dropout": 0.1}
    config = parse_model({**table, "num_layers": 2, "hidden_dim": 12, **({"embedding_dim": width} if width else {})})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=1)
    folder = tmp_path_factory.mktemp("published") / "model"
    write_model_folder(folder.with_name("ours"), config, model, BytesTokenizer(), {})
    loaded = open_model(str(folder.with_name("ours")), find_hardware("cpu"))
    export_model(loaded, folder, format_name=choose_format(config, None), card=CardSettings())
    return loaded, folder


def load(folder: Path, auto_class: str = "AutoModelForCausalLM") -> Any:
    return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()


def test_logits_agree_and_it_is_read_back_exactly(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    theirs, again = load(folder), open_model(str(folder), find_hardware("cpu"))
    with torch.inference_mode():
        wanted = loaded.model(TOKENS)
        assert torch.equal(theirs(TOKENS).logits, wanted) and torch.equal(again.model(TOKENS), wanted)
        loss = theirs(TOKENS, labels=TOKENS).loss
        assert loss == pytest.approx(float(loaded.model.losses(TOKENS[:, :-1], TOKENS[:, 1:]).mean()), abs=1e-5)
        hidden = load(folder, "AutoModel")(TOKENS).last_hidden_state
        assert torch.equal(theirs.lm_head(hidden), wanted)
    assert again.config == loaded.config and again.fingerprint() == loaded.fingerprint()
    assert transformers.AutoTokenizer.from_pretrained(folder).model_max_length > 10**9


def test_generated_texts_agree_padded_or_not(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    theirs = load(folder)
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
    padded, mask = torch.tensor([[0] * 4 + prompts[0], prompts[1]]), torch.tensor([[0] * 4 + [1] * 3, [1] * 7])
    greedy: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    steps = list(generate_batch(loaded.model, prompts, Settings(20, Sampling(temperature=0)), end_of_text=-1))
    for use_cache in (False, True):
        found = theirs.generate(padded, attention_mask=mask, use_cache=use_cache, **greedy)[:, 7:]
        assert found.tolist() == np.array(steps).T.tolist()


def test_native_is_refused(published: tuple[LoadedModel, Path]) -> None:
    refused(
        "publish", published[1], "--to", published[1].parent / "x", "--format", "native", code=2, says="no recurrent"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LSTM, and texts of three classes, most of them longer than its 16 tokens."""
    folder = tmp_path_factory.mktemp("classify")
    run_small(run_file(folder, model=LSTM.replace("hidden_dim = 12", "hidden_dim = 24")), name="base", stop_after=20)
    write_texts(folder)
    return folder


def tune(*arguments: object) -> Any:
    settings = ("--epochs", 12, "--patience", 0, "--learning-rate", 0.02, "--set", "train.precision=fp32")
    words = ("finetune", "classify", "base", "--data", "texts.csv", "--device", "cpu", "-q", *settings, *arguments)
    return run_command(*words)


def test_a_classifier_reads_whole_texts_and_scores_their_last_state(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(base)
    answer = tune("--name", "kinds", "--json")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)["classification"]
    assert report["classes"] == list(CLASSES) and report["test"]["balanced_accuracy"] > 0.6
    assert "their ends are cut" not in answer.err
    loaded = open_model("runs/kinds", find_hardware("cpu"), may_classify=True)
    text = "0 very cat " * 20
    ids = torch.tensor(loaded.tokenizer.encode(text).tolist())[None]
    assert isinstance(loaded.config, RecurrentConfig) and ids.shape[1] > loaded.config.context_length
    printed = run_command("classify", "kinds", "-", "--json", typed=f"{text}\n1 dog\n")
    found = [list(json.loads(line)["probabilities"].values()) for line in printed.out.splitlines()]
    with torch.inference_mode():
        last = loaded.model.hidden_states(ids, loaded.model.initial_carry(1))[0][0, -1]
        logits = last @ loaded.model.output_head.weight.T
    wanted = (logits / (report["temperature"] or 1.0)).softmax(0).tolist()
    assert found[0] == pytest.approx(wanted, abs=1e-5)
    check_published("kinds", tmp_path / "published", "custom")


@pytest.mark.parametrize("trained", ["head", "last-block"])
def test_exactly_the_wanted_weights_of_a_recurrent_model_are_trained(
    base: Path, monkeypatch: pytest.MonkeyPatch, trained: str
) -> None:
    monkeypatch.chdir(base)
    assert tune("--name", trained, "--train", trained, "--epochs", 1).code == 0
    after = open_model(f"runs/{trained}", find_hardware("cpu"), may_classify=True).model
    before = dict(open_model("runs/base", find_hardware("cpu")).model.named_parameters())
    changed = {
        name for name, weight in after.named_parameters() if name != "head.weight" and not weight.equal(before[name])
    }
    wanted = {name for name in before if name.startswith("layers.1.")} if trained == "last-block" else set()
    assert changed == wanted


def test_low_rank_additions_need_linear_layers(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(base)
    answer = tune("--name", "lora", "--train", "lora")
    assert answer.code == 2 and "the model has no linear layers; tune all of its weights instead" in answer.err
