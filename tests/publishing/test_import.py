"""Other programs' weights: converted exactly, or refused with a reason."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.loading import load_run_config
from fromscratch.config.model import GPTConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.gpt2 import to_gpt2_tensors
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.reading import read_model
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.gpt import GPT
from fromscratch.publishing.importing import ImportReport, import_model
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.publishing.models import make_model, publish

CPU = find_hardware("cpu")
TOKENS = torch.randint(0, 257, (2, 32), generator=torch.Generator().manual_seed(2))


def tensors_of(model: GPT) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


def logits_of(folder: Path) -> Tensor:
    with torch.inference_mode():
        return open_model(str(folder), CPU).model(TOKENS)


def to_book(model: GPT) -> dict[str, Tensor]:
    """The names of the book, with the fused matrix taken apart."""
    names = {
        "attention.output": "att.out_proj",
        "feedforward.up": "ff.layers.0",
        "feedforward.output": "ff.layers.2",
        "attention_norm": "norm1",
        "feedforward_norm": "norm2",
    }
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors_of(model).items():
        path, _, leaf = name.rpartition(".")
        if path.startswith("blocks."):
            _, layer, part = path.split(".", 2)
            block = f"trf_blocks.{layer}."
            if part == "attention.query_key_value":
                for which, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    theirs[f"{block}att.W_{which}.{leaf}"] = piece.contiguous()
                continue
            leaf = {"weight": "scale", "bias": "shift"}[leaf] if part.endswith("norm") else leaf
            theirs[f"{block}{names[part]}.{leaf}"] = tensor
        else:
            outside = {
                "token_embedding.weight": "tok_emb.weight",
                "position.embedding.weight": "pos_emb.weight",
                "final_norm.weight": "final_norm.scale",
                "final_norm.bias": "final_norm.shift",
                "head.weight": "out_head.weight",
            }
            theirs[outside[name]] = tensor
    theirs.setdefault("out_head.weight", theirs["tok_emb.weight"].clone())
    return theirs


def run(source: Path, out: Path, **settings: Any) -> ImportReport:
    return import_model(str(source), out, tokenizer="bytes", **settings)


class TestBook:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, True), (False, False)])
    def test_logits_are_the_same(self, tmp_path: Path, suffix: str, tied: bool, bias: bool) -> None:
        _, model = make_model(tied_head=tied, attention_bias=bias)
        theirs = {f"_orig_mod.{name}": tensor for name, tensor in to_book(model).items()}
        theirs["_orig_mod.trf_blocks.0.att.mask"] = torch.ones(32, 32).triu(1)
        file = tmp_path / f"model{suffix}"
        save_file(theirs, file) if suffix == ".safetensors" else torch.save(theirs, file)
        report = run(file, tmp_path / "out", num_heads=4)
        assert report.format == "book" and report.largest_logit_difference < 1e-5
        with torch.inference_mode():
            torch.testing.assert_close(logits_of(tmp_path / "out"), model(TOKENS), atol=1e-4, rtol=0)
        config = open_model(str(tmp_path / "out"), CPU).config
        assert isinstance(config, GPTConfig) and (config.tied_head, config.attention_bias) == (tied, bias)

    def test_the_number_of_heads_is_asked_for_never_guessed(self, tmp_path: Path) -> None:
        _, model = make_model(tied_head=False, attention_bias=False)
        save_file(to_book(model), tmp_path / "model.safetensors")
        with pytest.raises(UsageError, match="--heads N"):
            run(tmp_path, tmp_path / "out")
        with pytest.raises(UsageError, match="5 heads do not divide the embedding of 32"):
            run(tmp_path, tmp_path / "out", num_heads=5)
        assert not (tmp_path / "out").exists()

    def run_folder(self, folder: Path, **train: Any) -> Path:
        """A run as its author's program leaves it: settings above, weights in checkpoints, a link to the best."""
        _, model = make_model(tied_head=False, attention_bias=False)
        checkpoint = folder / "checkpoints" / "20260101Z000000-iteration-617"
        checkpoint.mkdir(parents=True)
        save_file(to_book(model), checkpoint / "model.safetensors")
        (folder / "checkpoints" / "best").symlink_to(checkpoint.name, target_is_directory=True)
        shape = {"vocab_size": 257, "context_length": 32, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
        (folder / "model.json").write_text(json.dumps({**shape, "drop_rate": 0.1, "qkv_bias": False}))
        shared = {"dataset": "gpjt/fineweb-gpt2-tokens", "start_train_token": 0, "start_val_token": 0}
        shared |= {"microbatch_size": 12, "checkpoint_interval": 617, "min_train_tokens": 98_304 * 100}
        (folder / "train.json").write_text(json.dumps({**shared, **train}))
        return folder

    def test_a_run_folder_becomes_a_run_file(self, tmp_path: Path) -> None:
        more = {"clipping_max_norm": 3.5, "learning_rate": 0.0014, "schedule_learning_rate": True, "mystery": 3}
        source = self.run_folder(tmp_path / "8xa100m40-best", **more, warmup_period_percent=5)
        report = run(source, tmp_path / "out")
        assert report.run_file == str(tmp_path / "out.toml")
        assert any("mystery" in note for note in report.notes) and any("8 processes" in note for note in report.notes)
        config = load_run_config(Path(report.run_file))
        train, model = config.train, config.model
        assert (train.clip.kind, train.clip.max_norm, train.global_batch, train.precision) == ("norm", 3.5, 96, "fp16")
        assert (train.optimizer.learning_rate, train.optimizer.weight_decay) == (0.0014, 0.1)
        assert (train.optimizer.beta2, train.optimizer.decay) == (0.999, "all")  # torch's defaults, as the script has
        num_steps = -(-98_304 * 100 // (96 * 32))
        assert (train.schedule.kind, train.schedule.warmup_steps) == ("warmup-cosine", num_steps * 5 // 100)
        assert train.schedule.min_learning_rate == pytest.approx(0.00014)
        assert (train.checkpoint_every, train.evaluate_every) == (617, 0)
        assert isinstance(model, GPTConfig)
        assert (model.num_heads, model.tied_head, model.init.kind) == (4, False, "torch")
        assert (config.data.store, config.data.tokens) == ("hf://gpjt/fineweb-gpt2-tokens", 98_304 * 100)
        assert "# not converted: mystery = 3" in Path(report.run_file).read_text()

    def test_a_file_beside_the_new_folder_is_harmed_by_no_run_file(self, tmp_path: Path) -> None:
        (tmp_path / "out.toml").write_text("mine")
        source = self.run_folder(tmp_path / "original")
        with pytest.raises(UsageError, match=r"out\.toml: exists already"):
            run(source, tmp_path / "out")
        assert (tmp_path / "out.toml").read_text() == "mine" and not (tmp_path / "out").exists()
        weights = tmp_path / "alone" / "model.safetensors"
        weights.parent.mkdir()
        weights.write_bytes((source / "checkpoints" / "best" / "model.safetensors").read_bytes())
        assert run(weights, tmp_path / "out", num_heads=4).run_file is None  # without settings, no run file is written

    def test_what_a_run_folder_does_not_say_is_not_guessed(self, tmp_path: Path) -> None:
        source = self.run_folder(
            tmp_path / "original", use_amp=False, schedule_learning_rate=True, warmup_period_percent=5
        )
        report = run(source / "checkpoints" / "best" / "model.safetensors", tmp_path / "out")
        assert any("global_batch is not converted" in note for note in report.notes)
        assert any("warmup_steps is not converted" in note for note in report.notes)
        train = load_run_config(Path(str(report.run_file))).train
        assert (train.precision, train.optimizer.learning_rate, train.schedule.warmup_steps) == ("tf32", 4e-4, 0)

    def test_the_model_of_a_hub_repository(self, tmp_path: Path) -> None:
        _, model = make_model(tied_head=False, attention_bias=False)
        save_file({f"model.{name}": tensor for name, tensor in to_book(model).items()}, tmp_path / "model.safetensors")
        settings = {
            "model_type": "gpjtgpt2",
            "cfg": {"n_heads": 4, "drop_rate": 0.1},
            "auto_map": {"AutoConfig": "x.Y"},
        }
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert run(tmp_path, tmp_path / "out").largest_logit_difference < 1e-5
        config = open_model(str(tmp_path / "out"), CPU).config
        assert isinstance(config, GPTConfig) and config.num_heads == 4


class TestNanoGPT:
    @pytest.mark.parametrize("bias", [True, False])
    def test_logits_are_the_same(self, tmp_path: Path, bias: bool) -> None:
        _, model = make_model(tied_head=True, attention_bias=True, feedforward="exact-gelu-mlp")
        if not bias:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith(".bias"):
                        parameter.zero_()
        theirs = {}
        for name, tensor in to_gpt2_tensors(tensors_of(model)).items():
            if bias or not name.endswith(".bias"):
                transposed = name.split(".")[-2].startswith("c_") and name.endswith(".weight")
                theirs[f"_orig_mod.{name}"] = tensor.T.contiguous() if transposed else tensor
        arguments = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "bias": bias, "vocab_size": 257}
        checkpoint = {"model": theirs, "optimizer": {}, "model_args": {**arguments, "dropout": 0.0}, "iter_num": 5}
        torch.save({**checkpoint, "config": {"dataset": "x"}}, tmp_path / "ckpt.pt")
        report = run(tmp_path, tmp_path / "out")
        assert report.format == "nanoGPT" and report.largest_logit_difference < 1e-5
        with torch.inference_mode():
            torch.testing.assert_close(logits_of(tmp_path / "out"), model(TOKENS), atol=1e-4, rtol=0)
        theirs["_orig_mod.lm_head.weight"] = theirs["_orig_mod.lm_head.weight"] + 1
        torch.save(checkpoint, tmp_path / "ckpt.pt")
        with pytest.raises(UsageError, match=r"the head is tied, but lm_head\.weight differs from wte\.weight"):
            read_model(tmp_path)


class TestGPT2:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return publish(tmp_path, "native", tied_head=False)[1]

    @pytest.mark.parametrize("tied", [True, False])
    def test_what_transformers_saves(self, tmp_path: Path, tied: bool) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=257, n_positions=32, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=tied, bos_token_id=0
        )
        reference = transformers.GPT2LMHeadModel(config).eval()
        reference.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
        assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
        report = run(tmp_path / "hf", tmp_path / "out")
        assert report.largest_logit_difference < 1e-5
        with torch.inference_mode():
            torch.testing.assert_close(logits_of(tmp_path / "out"), reference(TOKENS).logits, atol=1e-4, rtol=0)

    def test_as_openai_published_it(self, tmp_path: Path, folder: Path) -> None:
        """No prefix, causal masks among the weights, a config without our keys, bf16."""
        whole = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("transformer."): tensor.bfloat16() for name, tensor in whole.items()}
        bare |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32).tril(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        source = tmp_path / "openai"
        source.mkdir()
        save_file(bare, source / "model.safetensors")
        (source / "config.json").write_bytes((folder / "config.json").read_bytes())
        run(source, tmp_path / "out")
        expected = read_model(folder).build(folder)
        with torch.inference_mode():
            torch.testing.assert_close(logits_of(tmp_path / "out"), expected(TOKENS), atol=0.2, rtol=0.05)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"activation_function": "relu"}, "activation_function = 'relu'"),
            ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
            ({"vocab_size": 250}, r"wte.weight has 257 rows.* vocab_size = 250"),
            ({"tie_word_embeddings": True}, "the head is tied, but lm_head.weight differs"),
            ({"n_inner": 50}, "n_inner = 50"),
            ({"is_causal": False}, "is_causal = False: only True can be read"),
            ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ],
    )
    def test_b28_variants_are_refused(self, folder: Path, change: dict[str, Any], message: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UsageError, match=message):
            read_model(folder)

    def test_b28_transposed_matrices_are_refused(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        turned = {name: t.T.contiguous() if ".c_" in name and t.dim() == 2 else t for name, t in tensors.items()}
        save_file(turned, folder / "model.safetensors")
        with pytest.raises(UsageError, match=r"c_attn.weight is \[96, 32\], the transpose of Conv1D's"):
            read_model(folder)

    def test_a_conversion_gone_wrong_is_found_by_the_logits(self, folder: Path) -> None:
        found = read_model(folder)
        name = "blocks.1.attention.output.weight"
        found.tensors[name] = found.tensors[name].T
        with pytest.raises(DataError, match="logits before and after the conversion differ"):
            found.check(found.build(folder))

    def test_b28_a_padded_vocabulary_is_kept_and_said(self, tmp_path: Path) -> None:
        padded = publish(tmp_path, "native", vocab_size=264)[1]
        (padded / "tokenizer.json").unlink()
        report = run(padded, tmp_path / "out")
        assert report.vocab_size == 264 and any("padded: 264 ids" in note for note in report.notes)

    def test_b26_missing_and_unexpected_tensors_are_listed(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "extra.weight": torch.zeros(1)}, folder / "model.safetensors")
        with pytest.raises(DataError, match=r"unexpected tensors \['extra.weight'\]"):
            read_model(folder)
        del tensors["transformer.h.1.ln_2.bias"]
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(DataError, match=r"missing tensors \['h.1.ln_2.bias'\]"):
            read_model(folder)

    def test_b26_damaged_safetensors(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        good = weights.read_bytes()
        header = json.dumps(
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
            | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}
        ).encode()
        for bad in (
            struct.pack("<Q", 1 << 30) + b"{}",
            struct.pack("<Q", len(header)) + header + b"\0" * 12,
            good[: len(good) // 2],
            b"",
        ):
            weights.write_bytes(bad)
            with pytest.raises(DataError, match="not a readable safetensors file"):
                read_model(folder)
        tensors = {"transformer.wte.weight": torch.zeros(257, 32, dtype=torch.int64)}
        save_file({**load_bytes(good, folder), **tensors}, weights)
        with pytest.raises(DataError, match=r"wte.weight holds torch.int64"):
            read_model(folder)


def load_bytes(content: bytes, folder: Path) -> dict[str, Tensor]:
    path = folder / "again.tmp"
    path.write_bytes(content)
    tensors = dict(load_file(path))
    path.unlink()
    return tensors


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["ckpt.pt", "model.pth", "pytorch_model.bin"])
def test_b25_a_pickle_that_runs_code_is_refused(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    source = tmp_path / "source"
    source.mkdir()
    torch.save({"model": {"tok_emb.weight": Payload(marker)}, "model_args": {}}, source / name)
    with pytest.raises(DataError, match="refused: a pickle that holds more than tensors"):
        run(source, tmp_path / "out")
    (source / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match=r"refused|not readable by torch"):
        run(source / name, tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_b27_a_newer_format_is_refused(tmp_path: Path) -> None:
    _, folder = publish(tmp_path, "custom")
    model = tmp_path / "model"
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(DataError, match="written in format 99"):
        open_model(str(model), CPU)
    config = json.loads((folder / "config.json").read_text())
    config["fromscratch_model"]["attention"] = {"kind": "from-the-future"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="it may need a newer version"):
        read_model(folder)


def test_b29_a_repository_with_code_of_its_own_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other", "auto_map": {"AutoModel": "m.M"}}))
    (tmp_path / "m.py").write_text("raise SystemExit")
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"needs code of its own .* trust_remote_code=True"):
        run(tmp_path, tmp_path / "out")


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder, and not owner/name"):
        run(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none"):
        run(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "w.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="not a readable"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match=r"exists already and holds w\.safetensors"):
        run(tmp_path / "missing", tmp_path / "empty")
    with pytest.raises(UsageError, match=r"--out .*is a file, not a folder"):
        run(tmp_path / "missing", tmp_path / "empty" / "w.safetensors" / "new")


def test_a_model_is_written_over_nothing(tmp_path: Path) -> None:
    config, model = make_model()
    (tmp_path / "out").mkdir()
    write_model_folder(tmp_path / "out", config, model, BytesTokenizer(), {})
    with pytest.raises(UsageError, match="exists already and holds manifest"):
        write_model_folder(tmp_path / "out", config, model, BytesTokenizer(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_reference_attention_equals_torchs() -> None:
    """Conversions are checked against a plain forward pass; torch's own attention gives the same."""
    from fromscratch.formats.layouts import causal_attention

    q, k, v = torch.randn(3, 2, 5, 8).unbind(0)
    query, key, value = (t.view(2, 5, 2, 4).transpose(1, 2) for t in (q, k, v))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(2, 5, 8)
    torch.testing.assert_close(causal_attention(q, k, v, num_heads=2), expected)
