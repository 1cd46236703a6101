"""Document masks: a sequence of several documents is computed as each document alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from fromscratch.config.loading import parse_run_config
from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.data.store import TokenStore
from fromscratch.errors import UsageError
from fromscratch.evaluation.loss import measure_loss
from fromscratch.formats.model_sources import open_model
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.dropout import set_sequence_keys
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.planning.bench import Workload
from fromscratch.planning.memory_model import forecast_memory
from fromscratch.runs.records import read_records
from fromscratch.session.plan import check_document_mask, plan_run
from fromscratch.tokenizers.characters import CharacterTokenizer
from fromscratch.training.held_out import TokenSlice
from tests.small import make_store, run_small, write_run_file
from tests.training.test_resume import assert_same_end

END, LENGTH = 30, 24
SHAPE = {"vocab_size": 31, "context_length": LENGTH, "num_layers": 2, "num_heads": 4, "embedding_dim": 32}
TOKENS = torch.randint(0, END, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
TOKENS[0, [4, 5, 11]] = END  # documents of 5, 1, 6 and 12 tokens
TOKENS[1, [0, 23]] = END  # of 1 and 23
KINDS: dict[str, dict[str, Any]] = {
    "rope": {"position": "rope"},
    "rope-grouped-window": {"position": "rope", "attention": {"kind": "sdpa", "key_value_heads": 2, "window": (5, 0)}},
    "rope-explicit": {"position": "rope", "attention": {"kind": "explicit", "score_cap": 2.0}},
    "alibi": {"position": "alibi"},
    "alibi-explicit-window": {"position": "alibi", "attention": {"kind": "explicit", "window": 4}},
    "none": {"position": "none", "attention": "explicit"},
    "learned": {"position": "learned"},
    "nanochat": {"preset": "nanochat-like-small"},
}


def gpt(table: dict[str, Any], *, dropout: float = 0.0) -> GPT:
    config = GPTConfig.model_validate({**table, **SHAPE, "dropout": dropout, "init": {"kind": "gpt2", "std": 0.2}})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=5)
    model.document_end = END
    return model


def documents(row: Tensor) -> Iterator[slice]:
    """The places of each document's inputs."""
    begin = 0
    for place, token in enumerate(row.tolist()):
        if token == END or place == LENGTH - 1:
            yield slice(begin, place + 1)
            begin = place + 1


def alone(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Losses of each document in a sequence of its own; learned positions are those of the whole sequence."""
    table = model.position.embedding.weight if hasattr(model.position, "embedding") else None
    rows = []
    for row, wanted in zip(inputs, targets, strict=True):
        for place in documents(row):
            if table is not None:
                moved = functional_call(
                    model, {"position.embedding.weight": table.roll(-place.start, 0)}, (row[None, place],)
                )
                losses = F.cross_entropy(moved[0], wanted[place], reduction="none")
            else:
                losses = model.losses(row[None, place], wanted[None, place])[0]
            rows.append(losses)
    return torch.cat(rows).view(targets.shape)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_losses_and_gradients_are_those_of_each_document_alone(name: str, training: bool) -> None:
    model = gpt(KINDS[name]).train(training)
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    found, wanted = model.training_losses(inputs, targets).losses, alone(model, inputs, targets)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model.losses(inputs, targets), found)
    counts = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.5
    torch.testing.assert_close(model.losses_of(inputs, targets, counts), found[counts])
    weights = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((losses * weights).sum(), parameters) for losses in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    model.document_end = None
    assert not torch.allclose(model.losses(inputs, targets), found, atol=1e-2)


@pytest.mark.parametrize("name", KINDS)
def test_generation_sees_all_documents(name: str) -> None:
    model = gpt(KINDS[name]).eval()
    logits = model(TOKENS[:, :-1])
    model.document_end = None
    assert torch.equal(model(TOKENS[:, :-1]), logits)


@pytest.mark.parametrize("name", ["rope", "rope-explicit", "alibi"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_belongs_to_the_sequence(name: str, precision: torch.dtype) -> None:
    model, found = gpt(KINDS[name], dropout=0.2).train(), []
    for size in (1, 2):
        losses = []
        for rows, keys in zip(TOKENS.split(size), torch.arange(2).split(size), strict=True):
            set_sequence_keys(model, tuple(keys.tolist()))
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                losses.append(model.training_losses(rows[:, :-1], rows[:, 1:]).losses)
        found.append(torch.cat(losses))
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    torch.testing.assert_close(*found, atol=tolerance, rtol=tolerance)


def test_further_tokens_and_checkpointing_have_the_mask_too() -> None:
    model = gpt({"position": "rope", "multi_token": "blocks"}).train()
    changed = TOKENS.clone()
    changed[0, :4] = 7  # the first document
    found = []
    for model.gradient_checkpointing in (False, True):
        found += [model.training_losses(t[:1, :-1], TOKENS[:1, 1:]) for t in (TOKENS, changed)]
    assert torch.equal(found[0].losses[:, 5:], found[1].losses[:, 5:])
    assert torch.equal(found[0].losses, found[2].losses) and torch.equal(found[1].losses, found[3].losses)
    model.document_end = None
    unmasked = model.training_losses(TOKENS[:1, :-1], TOKENS[:1, 1:])
    one, other = (losses.auxiliary["multi_token_loss"] for losses in (found[0], unmasked))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_run_masks_in_training_and_in_every_evaluation(tmp_path: Path) -> None:
    make_store(tmp_path / "store", documents=300)
    tables = {"mask": {"tokens": 20 * 8 * 64, "document_mask": True}, "plain": {"tokens": 20 * 8 * 64}}
    model = {"context_length": 64, "position": "rope", "init": {"kind": "gpt2", "std": 0.2}}
    files = [write_run_file(tmp_path, name, data=table, model=model) for name, table in tables.items()]
    (run, summary), (plain, _) = (run_small(file, name=file.stem) for file in files)
    losses = [[record["loss"] for record in read_records(r.metrics)] for r in (run, plain)]
    assert losses[0][0] != losses[1][0] and losses[0][-1] < losses[0][0] - 0.5
    hardware, plan = find_hardware("cpu"), plan_run(files[0])
    assert isinstance(plan.store, TokenStore)
    held_out = TokenSlice.of(plan.store.split("validation"), start=0, tokens=320)
    loaded, found = open_model(str(run.path), hardware), []
    assert loaded.model.document_end == 256
    for loaded.model.document_end in (256, None):
        found.append(measure_loss(loaded.model, loaded.tokenizer, held_out, hardware).report.loss)
    assert found[0] == pytest.approx(summary.best_loss, abs=1e-6)
    assert abs(found[1] - found[0]) > 5e-5
    run_small(files[0], name="stopped", stop_after=7, micro_batch=8)
    resumed, _ = run_small(files[0], name="stopped", micro_batch=8)
    whole, _ = run_small(files[0], name="whole", micro_batch=8)
    assert_same_end(whole, resumed)
    divided, _ = run_small(files[0], name="divided", micro_batch=2)
    curves = [[record["loss"] for record in read_records(r.metrics)] for r in (whole, divided)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert plan_run(files[0]).identity != plan_run(files[1]).identity


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"tune": {"kind": "instruct"}}, "one record in a sequence; remove it"),
        ({"model": {"kind": "lstm"}}, "a model of kind 'lstm' has no such mask; remove it"),
    ],
)
def test_a_mask_without_effect_is_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_run_config({"data": {"store": "s", "document_mask": True}, **tables}, where="f")


def test_a_mask_needs_an_end_of_text_token() -> None:
    config = parse_run_config({"data": {"store": "s", "document_mask": True}}, where="f")
    with pytest.raises(UsageError, match=r"has no end-of-text token, which data.document_mask = true in f needs"):
        check_document_mask(config, CharacterTokenizer(("a", "b")), "f")


def test_what_fits_and_how_fast_it_is_are_asked_for_with_the_mask() -> None:
    """With a mask, each layer keeps one more tensor [T, T] for backward, where FlexAttention does not take its place.

    Measurements of both are kept apart.
    """
    table = {**SHAPE, "context_length": 256, "position": "rope"}
    config = parse_run_config({"model": table, "data": {"store": "s", "document_mask": True}}, where="f")
    masked = Workload.of(config)
    plain = Workload.of(config.model_copy(update={"data": config.data.model_copy(update={"document_mask": None})}))
    assert masked.document_mask and masked.key() == [*plain.key(), "document_mask"]
    masks = SHAPE["num_layers"] * 256 * 256

    def more(device_type: str) -> float:
        found = [forecast_memory(workload, device_type).at(1).activations for workload in (masked, plain)]
        return found[0] - found[1]

    assert more("cpu") >= masks
    assert more("cuda") >= masks, "heads of 8 channels"


@pytest.mark.parametrize("attention", [{"kind": "sdpa"}, {"kind": "explicit", "score_cap": 30.0, "key_value_heads": 1}])
def test_flex_attention_needs_the_memory_of_causal_attention(attention: dict[str, Any]) -> None:
    table = {**SHAPE, "context_length": 256, "embedding_dim": 64, "position": "rope", "dropout": 0.0}
    masked = Workload(GPTConfig.model_validate({**table, "attention": attention}), TrainConfig(), document_mask=True)
    causal = Workload(GPTConfig.model_validate(table), TrainConfig())
    needed = [forecast_memory(one, "cuda").at(2).activations for one in (masked, causal)]
    assert needed[0] == pytest.approx(needed[1], rel=0.15)
    assert forecast_memory(masked, "cpu").at(2).activations > needed[0] + SHAPE["num_layers"] * 256 * 256
    with_dropout = replace(masked, model=masked.model.model_copy(update={"dropout": 0.1}))
    assert forecast_memory(with_dropout, "cuda").at(2).activations > needed[0] + SHAPE["num_layers"] * 256 * 256
