"""Ten steps and one gradient against code that is not ours: plain PyTorch, and transformers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.goldens.cases import DATA, STORE, train, write_run_file
from tests.goldens.entrances import initial_weights, losses_and_gradients

STEPS, GLOBAL_BATCH, CONTEXT, WIDTH, HEADS, LAYERS, VOCABULARY = 10, 8, 16, 16, 2, 2, 257
RATE, WARMUP, DECAY, MAX_NORM, SEED = 0.01, 3, 0.1, 1.0, 42
MODEL: dict[str, Any] = {
    "context_length": CONTEXT,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "embedding_dim": WIDTH,
    "dropout": 0.0,
}


def plain_logits(weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """GPT-2 in plain PyTorch: ids [B, T] -> logits [B, T, V]."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch, time = tokens.shape
    future = torch.ones(time, time).triu(1).bool()
    x = weights["token_embedding.weight"][tokens] + weights["position.embedding.weight"][:time]
    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        mixed = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.query_key_value")
        query, key, value = (
            part.view(batch, time, HEADS, WIDTH // HEADS).transpose(1, 2) for part in mixed.split(WIDTH, -1)
        )
        scores = (query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).masked_fill(future, -math.inf)
        seen = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, time, WIDTH)
        x = x + linear(seen, f"{block}.attention.output")
        middle = linear(norm(x, f"{block}.feedforward_norm"), f"{block}.feedforward.up")
        middle = 0.5 * middle * (1 + torch.tanh(math.sqrt(2 / math.pi) * (middle + 0.044715 * middle**3)))
        x = x + linear(middle, f"{block}.feedforward.output")
    return norm(x, "final_norm") @ weights["token_embedding.weight"].T


def plain_training(weights: dict[str, Tensor], tokens: Tensor) -> list[dict[str, float]]:
    """A training loop in plain PyTorch: tokens of one split, in order -> loss, gradient norm and rate of each step."""
    parameters = {name: nn.Parameter(value.clone()) for name, value in weights.items()}
    groups = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    records = []
    for step in range(STEPS):
        first = step * GLOBAL_BATCH * CONTEXT
        inputs = tokens[first : first + GLOBAL_BATCH * CONTEXT].view(GLOBAL_BATCH, CONTEXT)
        targets = tokens[first + 1 : first + 1 + GLOBAL_BATCH * CONTEXT].view(GLOBAL_BATCH, CONTEXT)
        loss = F.cross_entropy(plain_logits(parameters, inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        rate = RATE * ((step + 1) / (WARMUP + 1) if step < WARMUP else 1 - (step - WARMUP) / (STEPS - WARMUP))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        records.append({"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate})
    return records


def test_ten_steps_equal_those_of_a_plain_pytorch_loop(tmp_path: Path) -> None:
    run_file = write_run_file(
        tmp_path / "parity.toml",
        {
            "model": MODEL,
            "data": {"store": str(DATA / STORE), "tokens": STEPS * GLOBAL_BATCH * CONTEXT},
            "train": {
                **{"global_batch": GLOBAL_BATCH, "precision": "fp32", "seed": SEED, "evaluate_every": 0},
                "optimizer": {"kind": "adamw", "learning_rate": RATE, "weight_decay": DECAY, "decay": "matrices"},
                "schedule": {"kind": "linear", "warmup_steps": WARMUP},
                "clip": {"kind": "norm", "max_norm": MAX_NORM},
            },
        },
    )
    answer = train(run_file, "parity")
    assert answer.code == 0, answer.err
    lines = (tmp_path / "runs" / "parity" / "metrics.jsonl").read_text().splitlines()
    ours = [json.loads(line) for line in lines]
    stored = load_file(DATA / STORE / "train-00000-000.safetensors")["tokens"]
    weights = initial_weights({**MODEL, "vocab_size": VOCABULARY}, seed=SEED)
    plain = plain_training(weights, torch.from_numpy(stored.astype(np.int64)))
    assert len(ours) == STEPS and any(record["clipped"] for record in ours)
    assert plain[-1]["loss"] < plain[0]["loss"] - 0.5, "it should also have learnt something"
    for one, other in zip(ours, plain, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-12)


TRANSFORMERS_NAMES = {
    "token_embedding": "wte",
    "position.embedding": "wpe",
    "final_norm": "ln_f",
    "attention_norm": "ln_1",
    "feedforward_norm": "ln_2",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feedforward.up": "mlp.c_fc",
    "feedforward.output": "mlp.c_proj",
}


def as_ours(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a GPT2LMHeadModel under our names; the matrices of its Conv1D layers transposed."""
    ours = {}
    for layer in range(LAYERS):
        for name, other in TRANSFORMERS_NAMES.items():
            is_inside = name.startswith(("attention", "feedforward"))
            prefix, other_prefix = (
                (f"blocks.{layer}.", f"transformer.h.{layer}.") if is_inside else ("", "transformer.")
            )
            for leaf in ("weight", "bias"):
                value = theirs.get(f"{other_prefix}{other}.{leaf}")
                if value is not None:
                    is_transposed = ".c_" in other and leaf == "weight"
                    ours[f"{prefix}{name}.{leaf}"] = value.T if is_transposed else value
    return ours


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
@pytest.mark.parametrize("head", ["chunked", "linear"])
def test_gradients_equal_those_of_transformers(attention: str, head: str) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = 601  # more than the chunked head's product of 512 entries
    config = transformers.GPT2Config(
        **{"vocab_size": vocabulary, "n_positions": 24, "n_embd": 32, "n_layer": LAYERS, "n_head": 4},
        **{"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0},
        attn_implementation="eager",
    )
    generator = torch.Generator().manual_seed(3)
    reference = transformers.GPT2LMHeadModel(config).train()
    with torch.no_grad():
        for parameter in reference.parameters():  # biases and norms too, which otherwise begin at 0 and 1
            noise = torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    tokens = torch.randint(0, vocabulary, (3, 25), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = F.cross_entropy(reference(inputs).logits.flatten(0, 1), targets.flatten())
    expected.backward()
    model = {
        **{"vocab_size": vocabulary, "context_length": 24, "num_layers": LAYERS, "num_heads": 4, "embedding_dim": 32},
        **{"dropout": 0.0, "attention": attention, "head": head},
    }
    theirs = dict(reference.named_parameters())
    weights = as_ours({name: p.detach() for name, p in theirs.items()})
    losses, gradients = losses_and_gradients(model, weights, inputs, targets)
    wanted = as_ours({name: p.grad for name, p in theirs.items() if p.grad is not None})
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradients.keys() == wanted.keys() == weights.keys() and len(wanted) == len(theirs)
    for name, gradient in gradients.items():
        difference = (gradient - wanted[name]).abs().max() / wanted[name].abs().max()
        assert difference <= 1e-5, f"{name}: {difference:.1e} of its largest element"
