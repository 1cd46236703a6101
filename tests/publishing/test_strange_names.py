"""Weights as other programs save them: wrapped names, the other name of a tied matrix, a resized vocabulary."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fromscratch.errors import DataError, UsageError
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.reading import read_model
from fromscratch.formats.weights import as_fp32, plain_name
from fromscratch.machine.hardware import find_hardware
from tests.publishing.models import make_model, publish
from tests.publishing.test_import import to_book

CPU = find_hardware("cpu")
TOKENS = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    [
        "module.h.0.weight",
        "module._orig_mod.h.0.weight",
        "_orig_mod.module.h.0.weight",
        "module.module.h.0.weight",
        "h.0._orig_mod.weight",
        "_fsdp_wrapped_module.h.0._checkpoint_wrapped_module._orig_mod.weight",
        "module.h._fsdp_wrapped_module.0.weight",
    ],
)
def test_names_of_wrappers_are_taken_off_in_any_order(name: str) -> None:
    assert plain_name(name) == "h.0.weight"


def test_what_only_looks_like_a_wrapper_stays_and_a_doubled_name_is_an_error() -> None:
    assert (
        plain_name("my_module.h.0.module.weight") == "my_module.h.0.module.weight" and plain_name("module") == "module"
    )
    with pytest.raises(DataError, match=r"holds h\.0 twice"):
        as_fp32({"module.h.0": torch.zeros(1), "h.0": torch.zeros(1)}, Path("x"))


@pytest.mark.parametrize(
    ("format_name", "kept", "dropped"),
    [
        ("native", "lm_head.weight", "transformer.wte.weight"),
        ("custom", "lm_head.weight", "model.gpt.token_embedding.weight"),
    ],
)
def test_a_tied_matrix_is_read_under_either_name(tmp_path: Path, format_name: str, kept: str, dropped: str) -> None:
    loaded, folder = publish(tmp_path, format_name, tied_head=True, attention_bias=True)
    tensors = load_file(folder / "model.safetensors")
    tensors[kept] = tensors.pop(dropped)
    rewrite(folder, tensors)
    with torch.inference_mode():
        again = open_model(str(folder), CPU)
        torch.testing.assert_close(again.model(TOKENS), loaded.model(TOKENS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied_head", [True, False])
def test_a_custom_model_with_a_resized_vocabulary_is_read(tmp_path: Path, tied_head: bool) -> None:
    transformers = pytest.importorskip("transformers")
    loaded, folder = publish(tmp_path, "custom", tied_head=tied_head)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    theirs.resize_token_embeddings(264)
    theirs.save_pretrained(tmp_path / "resized")
    (tmp_path / "resized" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    again = open_model(str(tmp_path / "resized"), CPU)
    assert again.model.vocab_size == 264
    with torch.inference_mode():
        ours = again.model(TOKENS)
        torch.testing.assert_close(ours[..., :257], loaded.model(TOKENS), atol=1e-4, rtol=0)
        torch.testing.assert_close(ours, theirs(TOKENS).logits, atol=1e-4, rtol=0)


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the weights of a published folder, as another program would."""
    (folder / "manifest.json").unlink(missing_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_book_file_with_only_the_head_of_a_tied_matrix(tmp_path: Path) -> None:
    _, model = make_model(tied_head=True)
    theirs = to_book(model)
    del theirs["tok_emb.weight"]
    save_file(theirs, tmp_path / "model.safetensors")
    found = read_model(tmp_path, num_heads=4)
    with torch.inference_mode():
        torch.testing.assert_close(found.build(tmp_path)(TOKENS), model(TOKENS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("format_name", "embedding"), [("native", "transformer.wte.weight"), ("custom", "model.gpt.token_embedding.weight")]
)
def test_the_head_of_an_untied_model_is_not_its_embedding(tmp_path: Path, format_name: str, embedding: str) -> None:
    folder = publish(tmp_path, format_name, tied_head=False)[1]
    tensors = load_file(folder / "model.safetensors")
    del tensors[embedding]
    rewrite(folder, tensors)
    with pytest.raises(DataError, match=r"missing tensors \['(wte|token_embedding)\.weight'\]"):
        open_model(str(folder), CPU)


def test_a_custom_model_whose_head_became_its_own_is_refused_or_read_as_untied(tmp_path: Path) -> None:
    loaded, folder = publish(tmp_path, "custom", tied_head=True)
    tensors = load_file(folder / "model.safetensors")
    head = 2 * tensors["model.gpt.token_embedding.weight"]
    rewrite(folder, {**tensors, "lm_head.weight": head})
    with pytest.raises(UsageError, match=r"head\.weight differs .*tie_word_embeddings"):
        open_model(str(folder), CPU)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    with torch.inference_mode():
        ours = open_model(str(folder), CPU).model(TOKENS)
        torch.testing.assert_close(ours, 2 * loaded.model(TOKENS), atol=1e-4, rtol=0)
