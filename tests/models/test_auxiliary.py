"""Auxiliary losses: part of what training minimises, never of the loss that is reported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fromscratch.config.model import GPTConfig
from fromscratch.machine.acceleration import Acceleration, accelerate
from fromscratch.models.costs import model_costs
from fromscratch.models.factory import build_empty, initialise, replace_head
from fromscratch.models.gpt import GPT
from fromscratch.models.mechanism import Auxiliary, mean_over_layers
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.training.next_token import next_token_loss
from fromscratch.training.objective import LossSum, MicroBatch
from tests.models.auxiliary import AUXILIARY_MODELS
from tests.small import run_small, write_run_file
from tests.training.test_resume import assert_same_end
from tests.training.test_step import RandomBatches, stepper

SHAPE = {"vocab_size": 31, "context_length": 8, "num_layers": 2, "num_heads": 2, "embedding_dim": 16}
each_model = pytest.mark.parametrize("name", AUXILIARY_MODELS)


def gpt(table: dict[str, Any]) -> GPT:
    config = GPTConfig.model_validate({**SHAPE, "dropout": 0.2, "init": {"kind": "gpt2", "std": 0.2}, **table})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=5)
    return model


def losses_of(run: RunDirectory, *names: str) -> list[list[float]]:
    return [[record[name] for record in read_records(run.metrics)] for name in names]


@each_model
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_any_division_of_the_batch_gives_the_same_steps(name: str, micro_batch: int) -> None:
    table, names = AUXILIARY_MODELS[name]
    whole, divided = stepper(gpt(table), 8), stepper(gpt(table), micro_batch)
    for step in range(3):
        one, other = whole.take(step, 1.0), divided.take(step, 1.0)
        torch.testing.assert_close(other.loss, one.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.grad_norm, one.grad_norm, atol=1e-4, rtol=1e-4)
        assert one.auxiliary.keys() == other.auxiliary.keys() == set(names)
        for key in names:
            torch.testing.assert_close(other.auxiliary[key], one.auxiliary[key], atol=1e-5, rtol=1e-4)


@each_model
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_any_division_gives_the_same_steps_where_some_targets_count(name: str, micro_batch: int) -> None:
    def half(model: GPT, batch: MicroBatch, _carry: object) -> LossSum:
        counts = (batch.inputs + torch.arange(8)) % 3 == 0
        losses, auxiliary, penalty = model.training_losses(batch.inputs, batch.targets, counts)
        return LossSum(losses.sum(), counts.sum(), {}, auxiliary, penalty)

    found = []
    for size in (8, micro_batch):
        steps = stepper(gpt(AUXILIARY_MODELS[name][0]), size)
        steps.loss_module.loss = half
        results = [steps.take(step, 1.0) for step in range(2)]
        found.append([value for r in results for value in (r.loss, r.grad_norm, *r.auxiliary.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@each_model
def test_the_objective_is_the_loss_and_the_penalties(name: str) -> None:
    table, names = AUXILIARY_MODELS[name]
    model = gpt({**table, "dropout": 0.0}).train()
    (batch,) = RandomBatches(8).micro_batches(0)
    result = next_token_loss(model, batch, {})
    torch.testing.assert_close(result.total, model.losses(batch.inputs, batch.targets).sum())
    wanted = result.total + sum(names[key] * value for key, value in result.auxiliary.items())
    torch.testing.assert_close(result.objective, wanted)
    assert any(names.values()) and bool(result.objective > result.total)
    assert next_token_loss(model.eval(), batch, {}).auxiliary == {}


@each_model
@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_are_those_of_the_objective(name: str, checkpointing: bool) -> None:
    """By finite differences along a random direction; the objective is computed in fp64."""
    model = gpt({**AUXILIARY_MODELS[name][0], "dropout": 0.0, "head": {**head_of(name), "kind": "linear"}}).double()
    model.train().gradient_checkpointing = checkpointing
    (batch,) = RandomBatches(8).micro_batches(0)
    next_token_loss(model, batch, {}).objective.backward()
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True) if p.grad is not None
    )
    values = []
    for step in (1e-4, -2e-4):
        torch._foreach_add_([p.data for p in model.parameters()], directions, alpha=step)
        values.append(next_token_loss(model, batch, {}).objective.item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-3)


def head_of(name: str) -> dict[str, Any]:
    head = AUXILIARY_MODELS[name][0].get("head", {})
    return head if isinstance(head, dict) else {}


def test_a_run_shows_them_and_reports_the_plain_loss(tmp_path: Path) -> None:
    """The first step is taken with the same weights; so are its losses."""
    plain, _ = run_small(write_run_file(tmp_path, "plain"), name="plain")
    table = {"head": {"kind": "chunked", "z_loss": 0.01}}
    run, _ = run_small(write_run_file(tmp_path, "z", model=table), name="z", micro_batch=4)
    losses, squares = losses_of(run, "loss", "z_loss")
    assert losses[0] == pytest.approx(losses_of(plain, "loss")[0][0], abs=1e-5)
    assert losses[1:] != losses_of(plain, "loss")[0][1:] and min(squares) > 0.0
    assert squares[-1] < squares[0] and "z_loss" not in next(iter(read_records(plain.metrics)))
    run_small(tmp_path / "z.toml", name="again", stop_after=7, micro_batch=4)
    again, _ = run_small(tmp_path / "z.toml", name="again", micro_batch=4)
    assert_same_end(run, again)


def test_means_over_layers() -> None:
    first = {"a": Auxiliary(torch.tensor([1.0, 2.0]), 0.1)}
    second = {"a": Auxiliary(torch.tensor([3.0, 6.0]), 0.1), "b": Auxiliary(torch.tensor([1.0, 1.0]), 0.0)}
    found = mean_over_layers([first, {}, second])
    assert found["a"].values.tolist() == [2.0, 4.0] and found["a"].coefficient == 0.1
    assert found["b"].values.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["linear", "chunked"])
def test_a_capped_head_with_z_loss_by_hand(kind: str) -> None:
    model = gpt({"head": {"kind": kind, "logit_cap": 2.0, "z_loss": 0.1}, "dropout": 0.0}).train()
    (batch,) = RandomBatches(8).micro_batches(0)
    hidden = model.hidden_states(batch.inputs)
    logits = 2.0 * torch.tanh(hidden @ model.token_embedding.weight.T / 2.0)
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(8, 8)
    squares = logits.exp().sum(-1).log().square()
    found = model.training_losses(batch.inputs, batch.targets)
    torch.testing.assert_close(found.losses, losses)
    torch.testing.assert_close(found.auxiliary["z_loss"], squares.sum())
    torch.testing.assert_close(model(batch.inputs), logits)

    def gradients(objective: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(objective, list(model.parameters())))

    wanted = gradients(losses.sum() + 0.1 * squares.sum())
    for one, other in zip(gradients(found.losses.sum() + found.penalty), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.eval().losses(batch.inputs, batch.targets), losses)


@pytest.mark.parametrize("counted", [True, False])
def test_further_tokens_are_predicted_as_by_models_without_the_last_block(counted: bool) -> None:
    """Block k in place of the last one is a model that predicts the token k places further."""
    table = {"multi_token": {"kind": "blocks", "tokens": 2, "coefficient": 0.4}, "position": "rope", "dropout": 0.0}
    model = gpt(table).train()
    (batch,) = RandomBatches(8).micro_batches(0)
    counts = (batch.inputs + torch.arange(8)) % 3 > 0 if counted else torch.ones(8, 8, dtype=torch.bool)
    means = []
    for ahead, block in enumerate(model.multi_token.blocks, start=1):  # type: ignore[arg-type]
        other = gpt({"position": "rope", "dropout": 0.0})
        weights = {n: p for n, p in model.state_dict().items() if not n.startswith(("multi_token.", "blocks.1."))}
        other.load_state_dict(weights | {f"blocks.1.{name}": p for name, p in block.state_dict().items()})
        logits = other(batch.inputs)[:, :-ahead]
        losses = F.cross_entropy(logits.mT, batch.targets[:, ahead:], reduction="none")
        valid = counts[:, ahead:]
        means.append((losses * valid).sum(1) / valid.sum(1))
    found = model.training_losses(batch.inputs, batch.targets, counts if counted else None)
    wanted = (torch.stack(means).mean(0) * counts.sum(1)).sum()
    torch.testing.assert_close(found.auxiliary["multi_token_loss"], wanted)
    plain = gpt({"position": "rope", "dropout": 0.0})
    plain.load_state_dict({n: p for n, p in model.state_dict().items() if not n.startswith("multi_token.")})
    torch.testing.assert_close(found.losses, plain.losses(batch.inputs, batch.targets)[counts].view(found.losses.shape))


def test_what_training_alone_computes_is_counted() -> None:
    """Against torch's count of a training step's forward pass, without the pairs of attention."""
    table = {**SHAPE, "position": "rope", "head": "linear", "multi_token": {"kind": "blocks", "tokens": 2}}
    costs, model = model_costs(GPTConfig.model_validate(table)), gpt({**table, "dropout": 0.0}).train()
    plain = model_costs(GPTConfig.model_validate({**table, "multi_token": None}))
    assert costs.forward_flops_per_token == plain.forward_flops_per_token
    assert costs.hoffmann_forward_flops_per_token == plain.hoffmann_forward_flops_per_token
    (batch,) = RandomBatches(8).micro_batches(0)
    counted = []
    for run in (lambda: model.training_losses(batch.inputs, batch.targets), lambda: model(batch.inputs)):
        with FlopCounterMode(display=False) as counter:
            run()
        products = counter.get_flop_counts()["Global"]
        counted.append(sum(count for name, count in products.items() if "attention" not in str(name)) / (8 * 8))
    pairs = 2 * 4 * 16 * (8 + 1) / 2  # of two blocks: 4 D for each visible position
    assert costs.auxiliary_flops_per_token == pytest.approx(counted[0] - counted[1] + pairs)
    assert costs.training_flops_per_token == 3 * (plain.forward_flops_per_token + costs.auxiliary_flops_per_token)


def test_a_classifier_predicts_no_further_tokens() -> None:
    model = gpt({"multi_token": "blocks"})
    replace_head(model, 3)
    with torch.no_grad():
        model.head.weight.zero_()
    found = model.train().training_losses(torch.ones(2, 8).long(), torch.ones(2, 8).long())
    assert found.auxiliary == {} and not any(p.requires_grad for p in model.multi_token.parameters())


def test_further_tokens_must_be_in_the_context() -> None:
    with pytest.raises(ValueError, match=r"multi_token.tokens = 8 must be below context_length = 8; lower it"):
        GPTConfig.model_validate({**SHAPE, "multi_token": {"kind": "blocks", "tokens": 8}})


@pytest.mark.slow
def test_a_compiled_step_computes_the_same() -> None:
    found = []
    for compiled in (False, True):
        model = gpt({**AUXILIARY_MODELS["everything"][0], "dropout": 0.0}).train()
        loss = accelerate(model, next_token_loss, Acceleration(compile=compiled), backend="aot_eager")
        (batch,) = RandomBatches(8).micro_batches(0)
        result = loss(model, batch, {})
        result.objective.backward()
        found.append([result.total, *result.auxiliary.values(), *(p.grad for p in model.parameters())])
    torch.compiler.reset()
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other)
