"""Models of the transformers library: the same logits, tuned, answered and published like our own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.answers import respond
from fromscratch.finetuning.records import read_records
from fromscratch.formats.model_sources import open_model
from fromscratch.generation.decoders import CachedDecoder, PlainDecoder
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import choose_format, export_model
from fromscratch.publishing.tokenizer_files import write_tokenizer
from fromscratch.runs.records import read_records as read_lines
from fromscratch.session.tuning import plan_tuning, tuning_config
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.finetuning.small import SETTINGS, make_records, tune

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a tiny StableLM of random weights in ``runs/base``, and records beside it."""
    folder = tmp_path_factory.mktemp("transformers")
    config = transformers.StableLmConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=request.param,
        attention_dropout=0.1,
    )
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "runs" / "base")
    write_tokenizer(BytesTokenizer(), folder / "runs" / "base", context_length=96)
    (folder / "records.json").write_text(json.dumps(make_records()))
    return folder


def test_it_computes_what_transformers_computes_also_with_a_cache(base: Path) -> None:
    loaded = open_model(str(base / "runs" / "base"), find_hardware("cpu"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(base / "runs" / "base").eval()
    tokens = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(tokens), reference(tokens).logits)
    prompts = [list(b"a longer prompt"), list(b"short")]
    settings = Settings(10, Sampling(temperature=0.0))
    rows = [
        list(generate_batch(loaded.model, prompts, settings, end_of_text=256, decoder=decoder))
        for decoder in (CachedDecoder, PlainDecoder)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 10


@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
def test_it_is_tuned_resumes_exactly_and_is_published(base: Path, tmp_path: Path, lora: bool) -> None:
    if lora:
        pytest.importorskip("peft")
    settings = ("tune.lora={ rank = 2 }", "train.optimizer.learning_rate=0.02") if lora else ()
    run, summary = tune(base, f"tuned-{lora}", *settings)
    losses = [record["loss"] for record in read_lines(run.events) if record["event"] == "evaluation"]
    assert summary.outcome == "done" and losses[-1] < losses[0]
    tune(base, f"stopped-{lora}", *settings, stop_after=7)
    stopped, _ = tune(base, f"stopped-{lora}", *settings)
    assert stopped.metrics.read_text().count("\n") == run.metrics.read_text().count("\n") == 24
    assert [r["loss"] for r in read_lines(stopped.metrics)] == [r["loss"] for r in read_lines(run.metrics)]
    loaded = open_model(str(run.path), find_hardware("cpu"))
    assert loaded.prompt_format is not None
    out = tmp_path / "out.json"
    respond(loaded, read_records(run.path / "split" / "test.json"), out, loaded.prompt_format, Settings(4), batch=4)
    assert len(json.loads(out.read_text())) == 6
    published = tmp_path / "published"
    export_model(loaded, published, format_name=choose_format(loaded.config, None), card=CardSettings())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published).eval()
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, loaded.model(tokens))
    again = open_model(str(published), find_hardware("cpu"))
    assert again.prompt_format == loaded.prompt_format
    assert json.loads((published / "config.json").read_text())["attention_dropout"] == 0.1


def test_dropout_that_is_off_is_said(base: Path) -> None:
    config = tuning_config(SETTINGS, [], "test")
    plan = plan_tuning(config, dict.fromkeys(("data.store", "train.start_from"), base), "test")
    assert plan.notices == (
        "the model's dropout (attention_dropout) is off, because a resumed run would draw other masks",
    )


def test_dropout_that_would_not_resume_is_refused(base: Path) -> None:
    with pytest.raises(UsageError, match=r"tune\.dropout = 0\.1: a model of kind 'huggingface' has no dropout"):
        tune(base, "dropout", "tune.dropout=0.1")


def test_weights_without_a_place_are_told_and_those_of_another_shape_refused(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source = base / "runs" / "base"
    config = json.loads((source / "config.json").read_text())
    for name, change in (("short", {"num_hidden_layers": 1}), ("wide", {"intermediate_size": 72})):
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config | change))
    open_model(str(tmp_path / "short"), find_hardware("cpu"))
    assert "weights of the folder have no place in the model of its config.json: model.layers.1." in caplog.text
    with pytest.raises(DataError, match=r"of another shape: model\.layers\.0\.mlp\.down_proj\.weight"):
        open_model(str(tmp_path / "wide"), find_hardware("cpu"))
    assert "Loading weights" not in capfd.readouterr().err
