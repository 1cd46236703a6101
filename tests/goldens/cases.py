"""What the goldens cover, and how each is computed with today's code.

Everything here is computed on the CPU with one thread. ``record.py`` writes the results down,
``test_goldens.py`` compares them.
"""

import hashlib
import json
import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
import torch

from tests.command import Answer, run_command
from tests.goldens.entrances import global_batches, initial_weights, resolve_run, store_ids

Json = dict[str, Any]

DATA = Path(__file__).parent / "data"
REPOSITORY = Path(__file__).resolve().parents[2]
STORE, STOPPED_RUN = "store", "stopped-run"
NUM_STEPS, STOPPED_AT = 30, 20
STEP_FIELDS = ("loss", "loss_min", "loss_max", "grad_norm", "learning_rate")
SENTENCE = "the cat dog sees hears likes a small large red house tree and or but then never often"

MODEL: Json = {"context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 8}
TRAIN: Json = {
    "global_batch": 8,
    "evaluate_every": 10,
    "checkpoint_every": 0,
    "optimizer": {"kind": "adamw", "learning_rate": 0.01},
    "schedule": {"kind": "linear", "warmup_steps": 3, "min_learning_rate": 0.0},
    "clip": {"kind": "norm", "max_norm": 1.0},
}
CURVES: dict[str, Json] = {
    f"{precision}, dropout {dropout}": {
        "model": {**MODEL, "dropout": dropout},
        "data": {"store": STORE, "tokens": NUM_STEPS * 8 * 16, "shuffle": True},
        "train": {**TRAIN, "precision": precision},
        "eval": {"tokens": 320},
    }
    for precision in ("fp32", "bf16")
    for dropout in (0.0, 0.1)
}
STOPPED_CURVE = "fp32, dropout 0.1"
"""The curve of the run that ``stopped-run`` is the first part of."""

WEIGHTS: dict[str, Json] = {
    f"{init}, {'tied' if tied else 'untied'}, {'with' if bias else 'without'} attention bias": {
        **MODEL,
        "vocab_size": 257,
        "init": {"kind": init},
        "tied_head": tied,
        "attention_bias": bias,
    }
    for init in ("gpt2", "torch")
    for tied in (True, False)
    for bias in (True, False)
}

NEAR_THE_END = 10_958 - 1 - 12 * 16
"""A start token after which the training split has 12 sequences: two epochs are three global batches."""
BATCHES: dict[str, Json] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "from token 77": {"start_token": 77},
    "shuffled from token 77": {"start_token": 77, "shuffle": True},
    "two epochs": {"start_token": NEAR_THE_END, "epochs": 2},
    "two epochs, shuffled": {"start_token": NEAR_THE_END, "epochs": 2, "shuffle": True},
}

EVERY_SLOT_CHANGED: Json = {
    "model": {
        **{"preset": "laptop-tiny", "context_length": 32, "dropout": 0.25, "attention_bias": False, "tied_head": False},
        "norm": {"kind": "layernorm", "eps": 1e-6},
        "position": "learned",
        "attention": "explicit",
        "feedforward": {"kind": "exact-gelu-mlp", "ratio": 2},
        "head": "linear",
        "init": "torch",
    },
    "data": {"store": STORE, "tokens": "0.1x", "start_token": 5, "shuffle": True, "epochs": 3},
    "train": {
        **{"global_batch": 6, "precision": "fp16", "seed": 7, "evaluate_every": 3, "sample_every": 4},
        **{"checkpoint_every": 5, "keep_checkpoints": 4},
        "optimizer": {
            **{"kind": "adamw", "learning_rate": 3e-3, "weight_decay": 0.2, "decay": "all"},
            **{"beta1": 0.8, "beta2": 0.99, "eps": 1e-7},
        },
        "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_steps": 4, "min_learning_rate": 1e-4},
        "clip": {"kind": "value", "max_value": 0.5},
        "nonfinite": {"kind": "random-step", "norm": 0.02, "max_in_a_row": 3},
        "spike": {"kind": "rollback", "window": 32, "deviations": 5.0},
    },
    "eval": {"start": 3, "tokens": 200, "prompts": ["the cat", "a dog"], "sample_tokens": 9},
}
RUN_FILES: dict[str, Json] = {
    "minimal": {"data": {"store": STORE, "tokens": "all", "epochs": 100}},
    "every slot changed": EVERY_SLOT_CHANGED,
    "from another model": {
        **CURVES[STOPPED_CURVE],
        "train": {**TRAIN, "start_from": {"model": STOPPED_RUN, "optimizer": True}},
    },
    "cosine": {
        "model": {"preset": "laptop-tiny"},
        "data": {"store": STORE, "tokens": 2_000},
        "train": {"global_batch": 8, "schedule": {"kind": "warmup-cosine", "warmup_steps": 1}, "nonfinite": "raise"},
    },
}
BASELINE = REPOSITORY / "studies" / "gpt2-small" / "baseline.toml"
BASELINE_ON_THE_SMALL_STORE = [f"data.store={STORE}", "data.tokens=all", "data.epochs=100"]


def this_machine() -> Json:
    """What decides whether floating-point results agree to the bit."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text("utf-8") if facts.is_file() else ""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping")
    found = (re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE) for name in wanted)
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": ", ".join(match[1] for match in found if match) or platform.machine(),
        "threads": 1,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: another number adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_run_file(path: Path, content: Json) -> Path:
    """A run file."""
    path.write_text(tomli_w.dumps(content), "utf-8")
    return path


def prepare_store(folder: Path) -> Path:
    """A byte-level store of made-up sentences in a folder, a tenth of them held out, by the command line."""
    rng = random.Random(0)
    texts = (" ".join(rng.choices(SENTENCE.split(), k=12)) + f" {number}." for number in range(200))
    (folder / "sentences.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    options = ("--tokenizer", "bytes", "--validation", "0.1", "--workers", "1", "--quiet")
    answer = run_command("data", "prepare", folder / "sentences.jsonl", "--out", folder / STORE, *options)
    assert answer.code == 0, answer.err
    (folder / "sentences.jsonl").unlink()
    return folder / STORE


def train(run_file: Path, name: str, *options: object) -> Answer:
    """Trains ``runs/NAME`` beside a run file by the command line, or goes on with it; one thread, two micro-batches."""
    machine = ("--device", "cpu", "--micro-batch", 4, "--no-compile", "--quiet")
    with one_thread():
        return run_command(
            "train", run_file, "--name", name, "--runs-dir", run_file.parent / "runs", *machine, *options
        )


def curve_of(run: Path) -> Json:
    """The recorded losses of a run directory."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    return {
        "steps": [{"step": one["step"], **{name: one[name] for name in STEP_FIELDS}} for one in steps],
        "held_out": {str(one["step"]): one["loss"] for one in events if one["event"] == "evaluation"},
    }


def train_curve(folder: Path, name: str) -> Json:
    """The curve of one of ``CURVES``, trained anew in a folder that has the store."""
    run_name = re.sub(r"[^a-z0-9.]+", "-", name)
    answer = train(write_run_file(folder / f"{run_name}.toml", CURVES[name]), run_name)
    assert answer.code == 0, answer.err
    return curve_of(folder / "runs" / run_name)


def hash_weights(model: Json) -> Json:
    """Of each initial parameter, by name: shape, the SHA-256 of its fp32 numbers, and the first few of them."""
    return {
        name: {
            "shape": list(value.shape),
            "sha256": hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest(),
            "first": value.flatten()[:3].tolist(),
        }
        for name, value in initial_weights(model, seed=42).items()
    }


def batches_of(folder: Path, data: Json) -> list[Json]:
    """The first three global batches of a run in a folder that has the store, in micro-batches of 3, 3 and 2."""
    tables = {"model": MODEL, "data": {"store": STORE, "tokens": 3 * 8 * 16, **data}, "train": {**TRAIN, "seed": 5}}
    tables["train"]["schedule"] = "constant"
    run_file = write_run_file(folder / "batches.toml", tables)
    return [vars(batch) for batch in global_batches(run_file, 3, micro_batch=3)]


def resolve(folder: Path, name: str) -> Json:
    """Identity and resolved config of one of ``RUN_FILES``, in a folder that has the store and the stopped run."""
    run_file = write_run_file(folder / "resolve.toml", RUN_FILES[name])
    identity, run_toml = resolve_run(run_file, [], folder / "resolved")
    return {**identity, "run_toml": run_toml}


def resolve_baseline(folder: Path) -> Json:
    """The same of the study's baseline on the small store, for which ``folder`` must be the current folder."""
    identity, run_toml = resolve_run(BASELINE, BASELINE_ON_THE_SMALL_STORE, folder / "resolved")
    return {**identity, "run_toml": run_toml}


def ids_in_store(store: Path) -> Json:
    """Of each split: how many token ids, their SHA-256 (of the list as JSON), and the first of them."""
    found = {split: store_ids(store, split) for split in ("train", "validation")}
    return {
        split: {"tokens": len(ids), "sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(), "first": ids[:40]}
        for split, ids in found.items()
    }


def generate(run: Path, *options: object) -> str:
    """What the model of a run's newest checkpoint writes after a prompt."""
    command = ("generate", run, "--prompt", "the cat", "--tokens", 8, "--seed", 3, "--device", "cpu", "--json")
    with one_thread():
        answer = run_command(*command, *options)
    assert answer.code == 0, answer.err
    return str(json.loads(answer.out)["text"])


def generate_texts(run: Path) -> Json:
    """The likeliest continuation, and one drawn at random."""
    return {"likeliest": generate(run, "--temperature", 0), "drawn": generate(run, "--temperature", 1)}
