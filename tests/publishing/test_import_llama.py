"""Llama, Mistral, Qwen2, Qwen3 and Mixtral as transformers saves them: imported exactly, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fromscratch.config.model import GPTConfig, HuggingFaceConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.formats import huggingface
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.reading import read_model
from fromscratch.generation.decoders import CachedDecoder
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.publishing.importing import import_model
from fromscratch.publishing.tokenizer_files import write_tokenizer
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.command import run_command
from tests.finetuning.small import make_records
from tests.formats.test_llama_config import LLAMA3, YARN
from tests.formats.test_llama_config import SHAPE as CONFIG_SHAPE
from tests.publishing.models import publish

transformers = pytest.importorskip("transformers")

CPU = find_hardware("cpu")
SHAPE: dict[str, Any] = {**CONFIG_SHAPE, "initializer_range": 0.2}
TOKENS = torch.randint(0, 257, (2, 40), generator=torch.Generator().manual_seed(1))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-narrow-heads": ("Llama", {"head_dim": 6, "rms_norm_eps": 1e-5}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-yarn": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "llama-yarn-other-factor": ("Llama", {"rope_parameters": {**YARN, "factor": 8, "rope_theta": 1e4}}),
    "llama-llama3": ("Llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, **LLAMA3}}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral-without-window": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"max_position_embeddings": 16 * 4, "rope_parameters": {**YARN, "rope_theta": 1e6}}),
    "qwen2-last-layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-layer-types": (
        "Qwen3",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
}


def save(folder: Path, family: str, settings: dict[str, Any], **saving: Any) -> Any:
    """A model of transformers with random weights, norms and biases included, saved in the folder."""
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **settings}, attn_implementation="eager")
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, **saving)
    write_tokenizer(BytesTokenizer(), folder, context_length=64)
    return model


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def as_transformers_4(config: dict[str, Any]) -> None:
    """The keys as files of the years before 2025 have them."""
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": config.pop("dtype"), "pretraining_tp": 1}
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config.pop("layer_types", None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_what_transformers_saved_is_imported_exactly(name: str, is_old: bool, tmp_path: Path) -> None:
    family, settings = CASES[name]
    theirs = save(tmp_path / "theirs", family, settings)
    if is_old and "layer_types" not in settings:
        edit(tmp_path / "theirs", as_transformers_4)
    report = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert report.format == family and report.largest_logit_difference < 1e-5
    loaded = open_model(str(tmp_path / "ours"), CPU)
    assert isinstance(loaded.config, GPTConfig)
    assert list(loaded.tokenizer.encode("One text")) == list(b"One text")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)
        wanted = theirs.generate(TOKENS[:1, :9], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert cached_text(loaded.model, TOKENS[0, :9].tolist()) == wanted[0, 9:].tolist()


def cached_text(model: Any, prompt: list[int]) -> list[int | None]:
    """Twenty tokens after a prompt, the most probable ones, generated with a cache."""
    settings = Settings(20, Sampling(temperature=0.0))
    return [row[0] for row in generate_batch(model, [prompt], settings, end_of_text=-1, decoder=CachedDecoder)]


def test_shards_in_bf16_and_a_mixture_saved_as_it_is_in_memory(tmp_path: Path) -> None:
    model = save(tmp_path / "shards", "Qwen3", {"head_dim": 8})
    model.bfloat16().save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    (tmp_path / "shards" / "model.safetensors").unlink()
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    found = read_model(tmp_path / "shards")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.float32).eval()
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
    with torch.inference_mode():
        torch.testing.assert_close(found.build(tmp_path)(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)
    files, memory = tmp_path / "files", tmp_path / "memory"
    save(files, "Mixtral", CASES["mixtral"][1])
    save(memory, "Mixtral", CASES["mixtral"][1], save_original_format=False)
    assert any("experts.gate_up_proj" in name for name in load_file(memory / "model.safetensors"))
    for name, tensor in read_model(files).tensors.items():
        assert torch.equal(read_model(memory).tensors[name], tensor), name


def test_special_tokens_around_a_text_are_told(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    save(tmp_path / "theirs", "Llama", {})
    assert import_model(str(tmp_path / "theirs"), tmp_path / "plain").notes == []
    file = str(tmp_path / "theirs" / "tokenizer.json")
    engine = tokenizers.Tokenizer.from_file(file)
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    engine.save(file)
    (note,) = import_model(str(tmp_path / "theirs"), tmp_path / "framed").notes
    assert "special tokens at the beginning or end of every text are left out" in note


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_a_classifier_is_read_with_its_classes(family: str, tmp_path: Path) -> None:
    names = {"id2label": {0: "ham", 1: "spam", 2: "eggs"}, "label2id": {"ham": 0, "spam": 1, "eggs": 2}}
    config = getattr(transformers, f"{family}Config")(**SHAPE, **names, pad_token_id=0)
    torch.manual_seed(2)
    theirs = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    theirs.save_pretrained(tmp_path)
    found = read_model(tmp_path)
    assert found.format == family and found.classes == ("ham", "spam", "eggs")
    with torch.inference_mode():
        scores, wanted = found.build(tmp_path)(TOKENS.clamp(min=1))[:, -1], theirs(TOKENS.clamp(min=1)).logits
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


def test_a_model_that_ours_do_not_compute_is_read_by_transformers_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = save(tmp_path / "theirs", "Llama", {"hidden_act": "gelu"})
    report = import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    (note,) = report.notes
    assert note.startswith("read as a model of kind 'huggingface', because of") and 'hidden_act = "gelu"' in note
    loaded = open_model(str(tmp_path / "ours"), CPU)
    assert isinstance(loaded.config, HuggingFaceConfig)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(TOKENS), theirs(TOKENS).logits)
    monkeypatch.setattr(huggingface, "is_causal_model", lambda raw: False)  # as where transformers is not installed
    with pytest.raises(UsageError, match=r'hidden_act = "gelu": only "silu" can be read .*; where transformers is'):
        import_model(str(tmp_path / "theirs"), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_size": 300}, DataError, r"embed_tokens.weight is \[257, 32\], but config.json makes it \[300, 32\]"),
        ({"head_dim": 16}, DataError, r"q_proj.weight is \[32, 32\], but config.json makes it \[64, 32\]"),
        ({"num_key_value_heads": 4}, DataError, r"k_proj.weight is \[16, 32\], but config.json makes it \[32, 32\]"),
        ({"attention_bias": True}, DataError, r"missing tensors \['layers.0.self_attn.q_proj.bias'"),
        ({"num_hidden_layers": 2}, DataError, r"unexpected tensors \['layers.2"),
        ({"tie_word_embeddings": True}, UsageError, r"the head is tied, but lm_head.weight differs"),
        ({"hidden_size": None}, DataError, r"not a config of Llama: hidden_size missing"),
        ({"num_hidden_layers": "3"}, DataError, r"not a config of Llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, UsageError, r"the weights are quantised"),
        ({"auto_map": {"AutoModel": "m.M"}}, UsageError, r"needs code of its own"),
    ],
)
def test_weights_that_do_not_match_the_config_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    save(tmp_path / "theirs", "Llama", {})
    edit(tmp_path / "theirs", lambda config: config.update(change))
    with pytest.raises(error, match=message):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_tensors_under_other_names(tmp_path: Path) -> None:
    """A base model has no prefix, older files hold the frequencies, a tied head may stand for the embedding."""
    save(tmp_path / "theirs", "Llama", {"tie_word_embeddings": True})
    file = tmp_path / "theirs" / "model.safetensors"
    wanted = read_model(tmp_path / "theirs").tensors
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    tensors["lm_head.weight"] = tensors.pop("embed_tokens.weight")
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file)
    found = read_model(tmp_path / "theirs").tensors
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"tied_head": True},
        {"attention_bias": False, "attention": "explicit"},
        {
            "norm": "rmsnorm",
            "position": "rope",
            "attention_bias": False,
            "attention": {"kind": "explicit", "output_bias": False},
            "feedforward": {"kind": "mixture", "capacity": 2.0, "router_z_loss": 0.1},
            "head": {"kind": "linear", "z_loss": 0.01},
        },
    ],
    ids=["gpt2", "gpt2-without-bias", "mixtral"],
)
def test_the_published_table_comes_back_whole_unless_the_keys_have_changed(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    loaded, folder = publish(tmp_path, "native", **changes)
    again = open_model(str(folder), CPU)
    assert (again.config, again.fingerprint()) == (loaded.config, loaded.fingerprint())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(260, mean_resizing=False)
    model.save_pretrained(tmp_path / "resized")
    write_tokenizer(BytesTokenizer(), tmp_path / "resized", context_length=32)
    report = import_model(str(tmp_path / "resized"), tmp_path / "imported")
    assert report.vocab_size == 260 and any("fromscratch_model in config.json is not used" in n for n in report.notes)


def test_it_is_measured_tuned_and_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("theirs"), "Qwen3", {"head_dim": 16, "max_position_embeddings": 400})
    Path("records.json").write_text(json.dumps(make_records()))
    Path("text.txt").write_text("One text after another. " * 200)
    assert run_command("import", "theirs", "--out", "ours").code == 0
    for model in ("theirs", "ours"):
        answer = run_command("generate", model, "Once", "--tokens", 5, "--device", "cpu", "--json")
        assert answer.code == 0, answer.err
    prepared = run_command("data", "prepare", "text.txt", "--out", "store", "--tokenizer", "bytes")
    assert prepared.code == 0, prepared.err
    measure = ("--store", "store", "--device", "cpu", "--json")
    answers = [run_command("eval", "loss", model, *measure) for model in ("theirs", "ours")]
    assert [answer.code for answer in answers] == [0, 0], answers[0].err
    first, second = (json.loads(answer.out) for answer in answers)
    assert first["loss"] == second["loss"]
    for model in ("theirs", "ours"):
        tuned = ("finetune", "instruct", model, "--data", "records.json", "--name", f"tuned-{model}", "--epochs", 1)
        answer = run_command(*tuned, "--device", "cpu", "--set", "train.precision=fp32", "--quiet")
        assert answer.code == 0, answer.err
    said = run_command("respond", "tuned-theirs", "--data", "records.json", "--out", "answers.json", "--tokens", 3)
    assert said.code == 0, said.err
    answer = run_command("publish", "tuned-ours", "--to", "published", "--format", "native", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(Path("published/config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
