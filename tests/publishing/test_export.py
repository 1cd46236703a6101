"""What is published computes what was trained, under transformers and without fromscratch."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.config.model import GPTConfig
from fromscratch.config.presets import PRESETS
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.costs import model_costs
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import choose_format, custom_config, export_model
from fromscratch.publishing.model_code import model_code_files
from fromscratch.publishing.native import native_config
from tests.command import nothing_written, refused, run_command
from tests.publishing.models import VARIANTS, make_loaded, publish
from tests.small import run_small, write_run_file

transformers = pytest.importorskip("transformers")
FORMATS = ("native", "custom")
TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=[(f, v) for f in FORMATS for v in VARIANTS], ids="-".join)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    format_name, variant = request.param
    return publish(tmp_path_factory.mktemp("published"), format_name, **VARIANTS[variant])


def load(folder: Path, auto_class: str = "AutoModelForCausalLM", **settings: Any) -> Any:
    return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, **settings).eval()


def test_logits_agree(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    theirs = load(folder)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(TOKENS).logits, loaded.model(TOKENS), atol=1e-4, rtol=0)
    tied = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert isinstance(loaded.config, GPTConfig) and tied == loaded.config.tied_head


def test_wide_heads_are_published_with_code(tmp_path: Path) -> None:
    loaded, folder = publish(tmp_path, "custom", head_dim=12, position="rope", attention="explicit")
    theirs = load(folder)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(TOKENS).logits, loaded.model(TOKENS), atol=1e-4, rtol=0)
    cached, plain = (
        theirs.generate(TOKENS[:1, :8], max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    )
    assert cached.tolist() == plain.tolist()


def test_what_is_published_is_read_back_exactly(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    again = open_model(str(folder), find_hardware("cpu"))
    assert again.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    with torch.inference_mode():
        torch.testing.assert_close(again.model(TOKENS), loaded.model(TOKENS), atol=1e-5, rtol=0)
    if json.loads((folder / "config.json").read_text())["model_type"] == "fromscratch":
        assert again.config == loaded.config and again.fingerprint() == loaded.fingerprint()


def test_greedy_texts_agree_cached_uncached_padded_and_ours(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    theirs = load(folder)
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
    padded = torch.tensor([[0] * 4 + prompts[0], prompts[1]])
    mask = torch.tensor([[0] * 4 + [1] * 3, [1] * 7])
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    steps = generate_batch(loaded.model, prompts, Settings(20, Sampling(temperature=0)), end_of_text=-1)
    expected = torch.tensor(list(steps)).T.tolist()
    for use_cache in (True, False):
        out = theirs.generate(padded, attention_mask=mask, use_cache=use_cache, **settings)
        assert out[:, 7:].tolist() == expected
    assert len(expected[0]) == 20 and expected[0] != expected[1]


def test_loss_with_labels_shifts_and_masks(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    labels = TOKENS.clone()
    labels[:, :5] = -100
    with torch.inference_mode():
        loss = load(folder)(TOKENS, labels=labels).loss
        losses = loaded.model.losses(TOKENS[:, :-1], TOKENS[:, 1:])
    torch.testing.assert_close(loss, losses[:, 4:].mean(), atol=1e-5, rtol=0)


def test_the_tokenizer_is_the_same(published: tuple[LoadedModel, Path]) -> None:
    loaded, folder = published
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("Every effort moves you", "  two  spaces\n\tand a tab", "\u00e9\u4e2d\U0001f600", "I'm don't 123"):
        assert theirs(text)["input_ids"] == loaded.tokenizer.encode(text).tolist()
        assert theirs.decode(loaded.tokenizer.encode(text).tolist()) == text
    assert theirs.eos_token_id == theirs.pad_token_id == loaded.tokenizer.end_of_text == 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("custom"), "custom", tied_head=False, dropout=0.1)[1]


class TestCustom:
    def test_it_carries_our_files_and_nothing_else_of_ours(self, folder: Path) -> None:
        import fromscratch.models.gpt as ours

        assert (folder / "gpt.py").read_text() == Path(str(ours.__file__)).read_text()
        for file in folder.glob("*.py"):
            assert "import fromscratch" not in file.read_text() and "from fromscratch" not in file.read_text()

    def test_beam_search_and_static_cache(self, folder: Path) -> None:
        model = load(folder)
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        prompt = TOKENS[:2, :6]
        greedy = model.generate(prompt, **settings)
        assert model.generate(prompt, cache_implementation="static", **settings).tolist() == greedy.tolist()
        beams = model.generate(prompt, num_beams=3, **settings)
        without_cache = model.generate(prompt, num_beams=3, use_cache=False, **settings)
        assert beams.tolist() == without_cache.tolist()

    def test_the_base_model_and_embeddings_as_input(self, folder: Path) -> None:
        base, whole = load(folder, "AutoModel"), load(folder)
        with torch.inference_mode():
            hidden = base(TOKENS).last_hidden_state
            torch.testing.assert_close(whole.lm_head(hidden), whole(TOKENS).logits)
            embedded = base(inputs_embeds=base.get_input_embeddings()(TOKENS)).last_hidden_state
            torch.testing.assert_close(embedded, hidden)

    def test_classification_looks_at_the_last_token_that_is_no_padding(self, folder: Path) -> None:
        model = load(folder, "AutoModelForSequenceClassification", num_labels=3)
        ids = TOKENS[:2, :6]
        with torch.inference_mode():
            scores = model(ids).logits
            right = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], dim=1)
            mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
            torch.testing.assert_close(model(right, attention_mask=mask).logits, scores, atol=1e-5, rtol=0)
            left, left_mask = right.roll(3, dims=1), mask.roll(3, dims=1)
            torch.testing.assert_close(model(left, attention_mask=left_mask).logits, scores, atol=1e-5, rtol=0)
            of_one = model(ids, labels=torch.tensor([0, 2])).loss
            torch.testing.assert_close(of_one, torch.nn.functional.cross_entropy(scores, torch.tensor([0, 2])))

    def test_the_labels_decide_the_loss_of_a_classifier(self, folder: Path) -> None:
        ids = TOKENS[:2, :6]
        several, number = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), torch.tensor([0.5, 2.0])
        model = load(folder, "AutoModelForSequenceClassification", num_labels=3)
        with torch.inference_mode():
            output = model(ids, labels=several)
            expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, several)
            torch.testing.assert_close(output.loss, expected)
            output = load(folder, "AutoModelForSequenceClassification", num_labels=1)(ids, labels=number)
            torch.testing.assert_close(output.loss, torch.nn.functional.mse_loss(output.logits[:, 0], number))

    def test_recomputed_activations_give_the_same_gradients(self, folder: Path) -> None:
        model = load(folder)
        gradients = []
        for recompute in (False, True):
            if recompute:
                getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            model.train().zero_grad()
            torch.manual_seed(0)
            model(TOKENS, labels=TOKENS).loss.backward()
            gradients.append(model.lm_head.weight.grad.clone())
        torch.testing.assert_close(*gradients)

    def test_save_resize_bf16_and_load_again(self, folder: Path, tmp_path: Path) -> None:
        model = load(folder)
        model.save_pretrained(tmp_path / "saved")
        with torch.inference_mode():
            again = load(tmp_path / "saved")
            torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits)
            half = load(folder, dtype=torch.bfloat16)
            assert half(TOKENS).logits.dtype == torch.bfloat16
        model.resize_token_embeddings(260)
        assert model(TOKENS).logits.shape[-1] == 260

    def test_texts_longer_than_the_context_are_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="33 tokens, but the model's context is 32"):
            load(folder)(torch.zeros(1, 33, dtype=torch.long))

    def test_b29_without_consent_transformers_refuses_and_we_read_no_code(self, folder: Path) -> None:
        script = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(folder)!r})"
        done = run_fresh(script)
        assert done.returncode != 0 and "trust_remote_code" in done.stderr
        code = folder / "modeling_fromscratch.py"
        code.write_text(code.read_text() + "\nraise SystemExit('ran')\n")
        with pytest.raises(DataError, match=r"modeling_fromscratch.py: .*manifest.json"):
            open_model(str(folder), find_hardware("cpu"))
        (folder / "manifest.json").unlink()
        assert open_model(str(folder), find_hardware("cpu")).config.vocab_size == 257


def run_fresh(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that has torch and transformers and cannot import fromscratch."""
    hidden = "import sys; sys.modules['fromscratch'] = None\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", hidden + textwrap.dedent(script), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=110, check=False, stdin=subprocess.DEVNULL
    )


def test_it_runs_where_fromscratch_is_not(tmp_path: Path) -> None:
    expected = {}
    for format_name in FORMATS:
        loaded, folder = publish(tmp_path / format_name, format_name, tied_head=False)
        with torch.inference_mode():
            expected[str(folder)] = loaded.model(TOKENS).sum(dim=-1).tolist()
    script = """
    import json, torch
    from transformers import AutoModelForCausalLM, pipeline
    found = {}
    for folder in sys.argv[2:]:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        found[folder] = model(torch.tensor(json.loads(sys.argv[1]))).logits.sum(dim=-1).tolist()
        speak = pipeline("text-generation", model=folder, trust_remote_code=True)
        texts = speak(["Every", "Every effort"], max_new_tokens=5, batch_size=2)
        assert all(t[0]["generated_text"].startswith("Every") for t in texts)
    print(json.dumps(found))
    """
    done = run_fresh(script, json.dumps(TOKENS.tolist()), *expected)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for place, sums in expected.items():
        torch.testing.assert_close(torch.tensor(found[place]), torch.tensor(sums), atol=1e-2, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_parameters_it_should_in_its_formats(preset: str, tmp_path: Path) -> None:
    config = GPTConfig.model_validate({"preset": preset, "vocab_size": 50_257, "tied_head": False})
    expected = model_costs(config).parameters
    if choose_format(config, None) == "native":
        with torch.device("meta"):
            described = transformers.AutoConfig.for_model(**native_config(config))
            native = transformers.AutoModelForCausalLM.from_config(described)
        assert native.num_parameters() == expected
    (tmp_path / "config.json").write_text(json.dumps(custom_config(config)))
    for name, text in model_code_files(config).items():
        (tmp_path / name).write_text(text)
    described = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    with torch.device("meta"):
        custom = transformers.AutoModelForCausalLM.from_config(described, trust_remote_code=True)
    assert custom.num_parameters() == expected


def test_the_format_is_chosen_or_refused() -> None:
    config = GPTConfig(vocab_size=257)
    assert choose_format(config, None) == "native"
    assert choose_format(config, "custom") == "custom"
    with pytest.raises(UsageError, match="--format onnx: must be native or custom"):
        choose_format(config, "onnx")


def test_publishing_into_a_project_harms_nothing(tmp_path: Path) -> None:
    """A config.json does not make a folder ours."""
    make_loaded(tmp_path / "model")
    model = tmp_path / "model"
    app = tmp_path / "app"
    files = {"config.json": "{}", "main.py": "print()", ".git/HEAD": "ref", "data/db.sqlite": "rows"}
    for name, text in files.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    (tmp_path / "link").symlink_to("app")
    for target in (app, tmp_path / "link", app / "main.py"):
        refused("publish", model, "--to", target, code=2, says=f"error: --to {target}: ")
    assert {name: (app / name).read_text() for name in files} == files
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_publishing_again_follows_links_and_replaces_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_loaded(tmp_path / "model")
    (tmp_path / "disk").mkdir()
    for name, target in (("link", "disk/published"), ("new", "disk/new")):
        (tmp_path / name).symlink_to(target)
    for _ in range(2):
        for name in ("link", "new", "plain"):
            done = run_command("publish", tmp_path / "model", "--to", tmp_path / name)
            assert done.code == 0, done.err
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "published" / "config.json").is_file()
    assert (tmp_path / "new").is_symlink() and (tmp_path / "plain" / "config.json").is_file()
    monkeypatch.chdir(tmp_path / "plain")
    with nothing_written(tmp_path):
        refused("publish", tmp_path / "model", "--to", ".", code=2, says="--to .: is the current folder")
        refused("publish", tmp_path / "model", "--to", "config.json/x", code=2, says="config.json is a file")
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


def test_what_is_put_into_the_folder_while_a_model_is_exported_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, out = publish(tmp_path, "native")

    def write_card(*arguments: Any) -> None:
        (out / "notes.txt").write_text("mine")

    monkeypatch.setattr("fromscratch.publishing.export.write_card", write_card)
    with pytest.raises(UsageError, match=r"also holds notes\.txt"):
        export_model(loaded, out, format_name="native", card=CardSettings())
    assert (out / "notes.txt").read_text() == "mine" and (out / "README.md").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "published"]


def test_the_card_names_the_folder_and_says_what_the_run_cost(tmp_path: Path) -> None:
    run, _ = run_small(write_run_file(tmp_path), stop_after=5)
    done = run_command("publish", run.path, "--to", tmp_path / "my model", "--format", "custom")
    assert done.code == 0, done.err
    card = (tmp_path / "my model" / "README.md").read_text("utf-8")
    assert 'model="my model", trust_remote_code=True' in card and ".tmp-" not in card
    assert "| sessions | 1 |" in card and "| dollars | unknown |" in card and "| of it training | " in card
    run.cost.write_text("{")
    run_command("publish", run.path, "--to", tmp_path / "damaged")
    assert "## Cost" not in (tmp_path / "damaged" / "README.md").read_text("utf-8")
