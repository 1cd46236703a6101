"""Muon, Lion and SGD against their definitions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import SGD, AdamW, Lion, Muon
from fromscratch.models.factory import build_empty, initialise
from fromscratch.optim.composite import CompositeOptimizer, as_composite

SHAPE = {"vocab_size": 50, "context_length": 8, "num_layers": 2, "num_heads": 2, "embedding_dim": 16}


def named_parameters() -> list[tuple[str, nn.Parameter]]:
    config = GPTConfig.model_validate({**SHAPE, "tied_head": False})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=1)
    return list(model.named_parameters())


def set_gradients(named: list[tuple[str, nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def rates_by_name(optimizer: CompositeOptimizer, named: list[tuple[str, nn.Parameter]]) -> dict[str, tuple[str, float]]:
    names = {id(parameter): name for name, parameter in named}
    return {
        names[id(parameter)]: (type(one).__name__, group["lr"])
        for one in optimizer.optimizers
        for group in one.param_groups
        for parameter in group["params"]
    }


def test_muon_trains_hidden_matrices_and_adamw_the_rest() -> None:
    named = named_parameters()
    slot = Muon(learning_rate=0.03, adamw_learning_rate=0.002, embedding_learning_rate=0.01)
    rates = rates_by_name(as_composite(slot.build(named)), named)
    assert rates.keys() == {name for name, _ in named}
    for name, parameter in named:
        if "embedding" in name:
            wanted = ("AdamW", 0.01)
        elif name == "head.weight" or parameter.dim() < 2:
            wanted = ("AdamW", 0.002)
        else:
            wanted = ("Muon", 0.03)
        assert rates[name] == wanted, name
    assert sum(kind == "Muon" for kind, _ in rates.values()) == 2 * 4


def test_muon_moves_a_matrix_by_an_orthogonal_update() -> None:
    named = named_parameters()
    optimizer = as_composite(Muon(learning_rate=0.03, weight_decay=0.0).build(named))
    before = {name: parameter.detach().clone() for name, parameter in named}
    set_gradients(named, 1)
    optimizer.step_unless(torch.tensor(False))
    for name, parameter in named:
        if name.startswith("blocks.") and parameter.dim() == 2:
            update = (before[name] - parameter.detach()) / 0.03
            rows, columns = update.shape
            values = torch.linalg.svdvals(update) / max(1.0, rows / columns) ** 0.5
            assert values.min() > 0.3 and values.max() < 1.4, name  # about one each: see the source, figure 1
            direction = torch.linalg.svd(parameter.grad, full_matrices=False)
            assert (
                torch.nn.functional.cosine_similarity(update.flatten(), (direction.U @ direction.Vh).flatten(), dim=0)
                > 0.93
            )


@pytest.mark.parametrize("cautious", [False, True])
def test_lion_is_its_published_program(cautious: bool) -> None:
    named = named_parameters()
    slot = Lion(learning_rate=0.01, weight_decay=0.5, beta1=0.8, beta2=0.6, cautious=cautious)
    optimizer = as_composite(slot.build(named))
    weights = {name: parameter.detach().clone() for name, parameter in named}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(3):
        set_gradients(named, step)
        optimizer.step_unless(torch.tensor(False))
        for name, parameter in named:
            gradient: Tensor = parameter.grad  # type: ignore[assignment]
            update = torch.sign(0.8 * momenta[name] + 0.2 * gradient)
            decays = torch.full_like(gradient, 0.5 if parameter.dim() >= 2 else 0.0)
            if cautious:
                decays = torch.where(update * weights[name] >= 0, decays, 0.0)
            weights[name] = weights[name] - 0.01 * (update + decays * weights[name])
            momenta[name] = 0.6 * momenta[name] + 0.4 * gradient
            torch.testing.assert_close(parameter.detach(), weights[name])


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_cautious_decay_of_other_optimisers_is_the_papers(kind: type[AdamW] | type[Muon]) -> None:
    settings: dict[str, Any] = {"learning_rate": 0.01}
    if kind is Muon:
        settings |= {"adamw_learning_rate": 0.002}
    cautious, plain = named_parameters(), named_parameters()
    decays: dict[str, Any] = {"weight_decay": 0.5, **({"adamw_weight_decay": 0.5} if kind is Muon else {})}
    one = as_composite(kind(**settings, **decays, cautious=True).build(cautious))
    without_decay: dict[str, Any] = dict.fromkeys(decays, 0.0)
    other = as_composite(kind(**settings, **without_decay).build(plain))
    rates = rates_by_name(other, plain)
    kept = 0
    for step in range(3):
        for optimizer, named in ((one, cautious), (other, plain)):
            set_gradients(named, step)
            named[0][1].grad[3:] = 0.0  # rows of an embedding that no token used
            optimizer.set_rate_factor(0.5)
        before = [parameter.detach().clone() for _, parameter in cautious]
        for old, (_, parameter) in zip(before, plain, strict=True):
            parameter.data.copy_(old)
        one.step_unless(torch.tensor(False))
        other.step_unless(torch.tensor(False))
        for old, (name, parameter), (_, without) in zip(before, cautious, plain, strict=True):
            update = old - without.detach()
            decays_here = (update * old >= 0) & (parameter.dim() >= 2)
            wanted = without.detach() - 0.5 * rates[name][1] * 0.5 * old * decays_here
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-8)
            kept += int((~decays_here).sum())
    assert kept > 1000, "some weights do not decay"


def test_sgd_by_hand() -> None:
    named = named_parameters()
    optimizer = as_composite(SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.01).build(named))
    _, parameter = named[0]
    weight, velocity = parameter.detach().clone(), torch.zeros_like(parameter)
    for step in range(3):
        set_gradients(named, step)
        optimizer.step_unless(torch.tensor(False))
        velocity = 0.9 * velocity + parameter.grad + 0.01 * weight
        weight = weight - 0.1 * velocity
        torch.testing.assert_close(parameter.detach(), weight)


@pytest.mark.parametrize("slot", [Muon(), Muon(cautious=True), AdamW(cautious=True), Lion(cautious=True), SGD()])
def test_a_held_step_changes_nothing(slot: Any) -> None:
    named = named_parameters()
    optimizer = as_composite(slot.build(named))
    before = [parameter.detach().clone() for _, parameter in named]
    set_gradients(named, 1)
    named[0][1].grad = torch.full_like(named[0][1], float("nan"))
    optimizer.step_unless(torch.tensor(True))
    assert all(torch.equal(old, parameter) for old, (_, parameter) in zip(before, named, strict=True))


@pytest.mark.parametrize("slot", [Muon(), Lion(), SGD(weight_decay=0.1)])
def test_state_of_the_size_to_come_is_there_for_a_measurement_only(slot: Any) -> None:
    named = named_parameters()
    optimizer = as_composite(slot.build(named))
    before = [parameter.detach().clone() for _, parameter in named]
    rates = [group["lr"] for group in optimizer.param_groups]
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    with optimizer.temporary_state():
        sizes = optimizer.state_tensors(named)
    assert all(torch.equal(old, parameter) for old, (_, parameter) in zip(before, named, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert not any(one.state for one in optimizer.optimizers)
    set_gradients(named, 1)
    optimizer.step_unless(torch.tensor(False))
    owned = {id(p) for one in optimizer.optimizers[:1] for group in one.param_groups for p in group["params"]}
    first = [name for name, parameter in named if id(parameter) in owned]
    after = {
        name: tensor for name, tensor in optimizer.state_tensors(named).items() if name.rpartition("/")[0] in first
    }
    assert {name: t.shape for name, t in sizes.items()} == {name: t.shape for name, t in after.items()} != {}


@pytest.mark.parametrize(
    ("family", "embeddings"),
    [
        ("Qwen3", {"model.embed_tokens.weight"}),
        ("GPT2", {"transformer.wte.weight", "transformer.wpe.weight"}),
        ("GPTNeoX", {"gpt_neox.embed_in.weight"}),
    ],
)
def test_muon_knows_embeddings_and_heads_of_transformers(family: str, embeddings: set[str]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    gpt2 = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40, tie_word_embeddings=False, **(gpt2 if family == "GPT2" else sizes)
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    head = next(name for name, p in model.named_parameters() if p is model.get_output_embeddings().weight)
    named = [(f"inner.{name}", parameter) for name, parameter in model.named_parameters()]
    slot = Muon(adamw_learning_rate=0.002, embedding_learning_rate=0.01)
    rates = rates_by_name(as_composite(slot.build(named)), named)
    by_adamw = {name.removeprefix("inner."): rate for name, (kind, rate) in rates.items() if kind == "AdamW"}
    assert {name for name, rate in by_adamw.items() if rate == 0.01} >= embeddings
    assert head in by_adamw
    matrices = {name for name, parameter in named if parameter.dim() == 2}
    assert {name for name, (kind, _) in rates.items() if kind == "Muon"} == matrices - {
        f"inner.{name}" for name in {*embeddings, head}
    }


def test_muon_without_hidden_matrices_is_adamw() -> None:
    named = [("head.weight", nn.Parameter(torch.zeros(3, 4)))]
    assert rates_by_name(as_composite(Muon().build(named)), named) == {"head.weight": ("AdamW", 6e-4)}
