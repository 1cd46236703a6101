"""MODEL on the command line: a name of trained weights, opened as a model and its tokenizer.

A name is a run (its best checkpoint), ``run@latest``, ``run@best``, ``run@step-617``, a checkpoint folder, each with
``@raw``, ``@ema`` or ``@tail`` (``run@ema``, ``run@latest+ema``) for the weights or an average of them, a folder that
``fromscratch import``, ``publish`` or transformers wrote, a repository on the Hugging Face Hub, or OpenAI's ``gpt2``,
``gpt2-medium``, ``gpt2-large``, ``gpt2-xl``.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from fromscratch.config.loading import read_run_config
from fromscratch.config.model import ModelConfig
from fromscratch.config.prompts import PromptFormat
from fromscratch.config.run import RunConfig
from fromscratch.config.tune import Classify
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, verify_folder
from fromscratch.formats.checkpoints import AVERAGES, MODEL_FILE, RAW, STATE_FILE, average_file, read_state
from fromscratch.formats.gpt2 import OPENAI_REPOSITORIES
from fromscratch.formats.lora import merge_lora
from fromscratch.formats.model_folder import is_model_folder
from fromscratch.formats.prompt_files import read_prompt_format
from fromscratch.formats.reading import HUB_CONFIG, read_model, tokenizer_of
from fromscratch.formats.tensor_files import read_tensors, tensor_names
from fromscratch.formats.weights import fill, model_tensors
from fromscratch.hub.downloads import download_model
from fromscratch.hub.names import HUB_PREFIX, model_name
from fromscratch.machine.hardware import Hardware
from fromscratch.models.factory import build_empty, build_model, replace_head
from fromscratch.models.language_model import LanguageModel
from fromscratch.runs.directory import RunDirectory, find_run
from fromscratch.runs.retention import BEST, LATEST, checkpoints_in, damage_of, newest_valid
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.loading import load as load_tokenizer

STEP = re.compile(r"step-(\d+)")
RUNS_DIR = Path("runs")
LOG = logging.getLogger(__name__)

_download_once = lru_cache(maxsize=8)(download_model)  # at most one request per process


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, in evaluation mode on its device, with its config, tokenizer and origin."""

    source: str
    """The name that the user gave."""
    model: LanguageModel
    config: ModelConfig
    tokenizer: Tokenizer
    checkpoint: Path
    """Folder of the weights."""
    run: RunDirectory | None = None
    """None for weights of another program."""
    step: int | None = None
    """Number of optimiser steps done; None without a run."""
    prompt_format: PromptFormat | None = None
    """The format of the prompts that it was tuned on; None if it was not tuned, or nobody knows."""
    weights: str = RAW
    """Which weights of a checkpoint: the trained ones (``raw``), or the average of this name."""
    classes: tuple[str, ...] = ()
    """The classes that a classifier scores, in the order of its scores; empty for a language model."""

    @property
    def name(self) -> str:
        """Returns a short name, for files and titles."""
        if self.run:
            return self.run.name
        hub = None if Path(self.source).expanduser().exists() else model_name(self.source)
        return Path(hub.repository if hub else self.source).name or "model"

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the names and values of all weights; it does not depend on the path."""
        digest = hashlib.sha256()
        for name, tensor in model_tensors(self.model).items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def open_model(
    source: str,
    hardware: Hardware,
    *,
    runs_dir: Path = RUNS_DIR,
    may_classify: bool = False,
    may_encode: bool = False,
) -> LoadedModel:
    """Loads the model that ``source`` names. A run is also looked up in ``runs_dir``.

    Args:
        may_classify: whether a classifier is meant too; otherwise only a language model.
        may_encode: whether an encoder is meant too, which is no classifier yet.

    Raises:
        UsageError: no such model, or it is a classifier or an encoder.
        DataError: the run, checkpoint or folder is damaged or has no weights yet.
    """
    loaded = _open(source, hardware, runs_dir)
    if loaded.classes and not may_classify:
        raise UsageError(
            f"model {source}: classifies texts and has no language head; use 'fromscratch classify' or 'publish'"
        )
    if loaded.model.is_encoder and not loaded.classes and not may_encode:
        raise UsageError(
            f"model {source}: reads texts in both directions (an encoder), and predicts no next token; 'fromscratch "
            "finetune classify' makes a classifier of it"
        )
    return loaded


def _open(source: str, hardware: Hardware, runs_dir: Path) -> LoadedModel:
    place, weights = _locate(source, runs_dir)
    if (place / STATE_FILE).is_file():
        return _open_checkpoint(source, place, hardware, weights)
    if (place / MANIFEST).is_file():
        verify_folder(place)
    found = read_model(place)
    for line in found.notes:
        LOG.warning("notice: model %s: %s", source, line)
    model = found.build(place)
    found.check(model)
    tokenizer = tokenizer_of(place, vocab_size=model.vocab_size)
    return LoadedModel(
        source,
        model.to(hardware.device),
        found.config,
        tokenizer,
        place,
        prompt_format=read_prompt_format(place),
        classes=found.classes,
    )


def _open_checkpoint(source: str, checkpoint: Path, hardware: Hardware, weights: str) -> LoadedModel:
    run = find_run(checkpoint.parent.parent)
    verify_folder(checkpoint)
    step = read_state(checkpoint).step
    run_config = read_run_config(run.config_at(step))
    config, tune = _model_of(run_config, checkpoint), run_config.tune
    model = build_empty(config, hardware.device)
    if isinstance(tune, Classify):
        replace_head(model, len(tune.classes))
    weights = _present_weights(source, checkpoint, weights, default=run_config.eval.weights)
    tensors = read_tensors(checkpoint / MODEL_FILE)
    if weights != RAW:
        tensors |= read_tensors(checkpoint / average_file(weights))  # of frozen weights there is no average
    if tune and tune.lora:
        tensors = merge_lora(tensors, tune.lora, model)
    fill(model, tensors, checkpoint / MODEL_FILE)
    tokenizer = load_tokenizer(run.tokenizer)
    if run_config.data.document_mask:
        model.document_end = tokenizer.end_of_text
    prompt_format, classes = getattr(tune, "prompt", None), getattr(tune, "classes", ())
    return LoadedModel(
        source, model.eval(), config, tokenizer, checkpoint, run, step, prompt_format, weights=weights, classes=classes
    )


def _model_of(run_config: RunConfig, checkpoint: Path) -> ModelConfig:
    """Returns the config of a checkpoint's model, whose head may have been untied by then."""
    tied, last = run_config.model, run_config.train.last_model(run_config.model)
    if last == tied:
        return tied
    with torch.device("meta"):
        names = {name for name, _ in build_model(tied).named_parameters()}
    return tied if names == tensor_names(checkpoint / MODEL_FILE) else last


def _present_weights(source: str, checkpoint: Path, wanted: str, *, default: str) -> str:
    """Returns which weights of a checkpoint are meant: those wanted, else the run's default, if they are there."""
    present = [RAW, *(name for name in AVERAGES if (checkpoint / average_file(name)).is_file())]
    if not wanted and default not in present:
        LOG.warning(
            "notice: model %s: taking the raw weights of %s, because the average '%s' had not begun there",
            *(source, checkpoint.name, default),
        )
        return RAW
    if (wanted or default) not in present:
        raise UsageError(
            f"model {source}: {checkpoint.name} has no average '{wanted}' of the weights; it has {', '.join(present)} "
            "([train] averages asks for them)"
        )
    return wanted or default


def locate(source: str) -> Path:
    """Returns the folder of a model's weights; downloads it from the Hub. Raises UsageError or DataError."""
    return _locate(source, RUNS_DIR)[0]


def _locate(source: str, runs_dir: Path) -> tuple[Path, str]:
    """Returns the folder of a model's weights, and which weights of a checkpoint the name asks for, if it does."""
    place, which = split_source(source)
    for name, wanted in ((source, ""), (place, which)):
        for path in (Path(name).expanduser(), runs_dir / Path(name).expanduser()):
            if path.exists():
                checkpoint, weights = _split_weights(wanted)
                return _in_folder(path, checkpoint, source, weights), weights
    hub_name = OPENAI_REPOSITORIES.get(source, source)
    is_hub_name = hub_name != source or source.startswith(HUB_PREFIX) or not Path(place).expanduser().parent.is_dir()
    if model_name(hub_name) and is_hub_name:
        return _download_once(hub_name), ""
    raise UsageError(
        f"model {source}: no such run or checkpoint, here or in {runs_dir}; give a run directory, a run's name, "
        "RUN@latest, RUN@step-N, RUN@ema, an exported or imported folder, owner/name on the Hub, or one of "
        f"{', '.join(OPENAI_REPOSITORIES)}"
    )


def split_source(source: str) -> tuple[str, str]:
    """Splits ``run@step-617`` into run and checkpoint. An ``@`` counts in the last part of a path only."""
    folder, slash, last = source.rpartition("/")
    name, at, which = last.rpartition("@")
    return (f"{folder}{slash}{name}", which) if at else (source, "")


def _split_weights(which: str) -> tuple[str, str]:
    """Splits ``latest+ema`` into checkpoint and weights; either may be absent."""
    checkpoint, _, weights = which.rpartition("+")
    return (checkpoint, weights) if weights in (RAW, *AVERAGES) else (which, "")


def _in_folder(path: Path, which: str, source: str, weights: str) -> Path:
    if RunDirectory(path).exists():
        return _checkpoint_of(RunDirectory(path), which, source)
    is_checkpoint = (path / STATE_FILE).is_file()
    if which or (weights and not is_checkpoint):
        raise UsageError(f"model {source}: {path} is not a run directory, so it has no '{which or weights}'")
    if is_checkpoint:
        return path.resolve()
    if path.is_dir() and (is_model_folder(path) or (path / HUB_CONFIG).is_file()):
        return path
    raise UsageError(
        f"model {source}: {path} is neither a run directory nor a checkpoint nor an exported folder; convert weights "
        f"of another program with 'fromscratch import {path} --out DIR'"
    )


def _checkpoint_of(run: RunDirectory, which: str, source: str) -> Path:
    available = checkpoints_in(run.checkpoints)
    if not available:
        raise DataError(f"model {source}: the run has no checkpoint yet")
    best = (run.checkpoints / BEST).resolve()
    if which in ("", BEST) and best in [path.resolve() for path in available]:
        return best
    if which == LATEST:
        if damage := damage_of(available[-1]):
            raise DataError(
                f"model {source}: the latest checkpoint is damaged ({damage}); name another: {_steps(available)}"
            )
        return available[-1]
    if which == BEST:
        raise DataError(f"model {source}: the run has no best checkpoint; name another: {_steps(available)}")
    if not which:
        newest, skipped = newest_valid(run.checkpoints)
        if newest is None:
            raise DataError(f"model {source}: no checkpoint is valid ({skipped[0]})")
        because = f", the newest that is valid ({skipped[0]})" if skipped else ", the newest"
        LOG.warning("notice: model %s: the run has no best checkpoint; taking %s%s", source, newest.name, because)
        return newest
    step = STEP.fullmatch(which)
    found = [path for path in available if step and path.name == f"step-{int(step.group(1)):08}"]
    if not found:
        raise UsageError(
            f"model {source}: no checkpoint '{which}'; the run has {_steps(available)}, and latest and best"
        )
    return found[0]


def _steps(checkpoints: list[Path]) -> str:
    return ", ".join(f"step-{int(path.name[5:])}" for path in checkpoints)
