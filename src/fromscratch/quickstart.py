"""The whole path in a few minutes, offline: a corpus, a tokenizer, a model that learns English.

It uses what every other verb uses, and leaves a folder to play on with: a token store, a run file
and a run.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fromscratch.data.prepare import VALIDATION, SplitRule, prepare_store, training_documents
from fromscratch.data.store import TokenStore, open_store
from fromscratch.evaluation.compressors import compressor_bits_per_byte, text_of
from fromscratch.evaluation.loss import LossReport, evaluate_loss, record_loss
from fromscratch.files import MANIFEST, write_atomically
from fromscratch.formats.model_sources import open_model
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.machine.precision import fast_16bit_precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.language_model import LanguageModel
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import PlannedRun, plan_run
from fromscratch.session.run import RunSummary, is_done, run_training
from fromscratch.session.samples import continue_text
from fromscratch.sources import PythonDocs
from fromscratch.sources.base import InMemory
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.huggingface import train_byte_pairs
from fromscratch.training.held_out import TokenSlice
from fromscratch.training.observers import Observer

HELD_OUT_SHARE = 0.03
RUN_NAME = "quickstart"
PROMPTS = ("Return the", "Every effort moves you")
SAMPLE_TOKENS = 80
RUN_FILE = """\
# A run file describes the science of a run, never the machine it runs on.
# Try:  fromscratch train {name}.toml --set train.seed=7 --name another-seed

[model]
preset = "laptop-small"      # 4 layers, 6 heads, 192 wide, context 128
dropout = 0.0                # one pass over the data: nothing to protect against
tied_head = false
attention = "explicit"       # on a CPU, faster than fused kernels at a context this short
init = {{ kind = "gpt2", std = 0.06 }}

[data]
store = "store"
tokens = {tokens}
shuffle = true               # the documents come package by package

[train]
global_batch = 8
precision = "{precision}"
seed = 42
evaluate_every = 375
sample_every = 500
checkpoint_every = 375
optimizer = {{ kind = "adamw", learning_rate = 4e-3 }}
schedule = {{ kind = "linear", warmup_steps = 100 }}
clip = {{ kind = "norm", max_norm = 1.0 }}

[eval]
tokens = 150_000
prompts = {prompts}
"""


@dataclass(frozen=True)
class Scale:
    """How much the quickstart does. The default takes three minutes on two cores."""

    packages: tuple[str, ...] = ("stdlib", "torch", "numpy", "matplotlib", "pandas")
    """Whose documentation to read; what is not installed is left out."""
    vocabulary_size: int = 2_048
    tokens: int = 1_536_000
    """To train on: 1,500 steps."""


@dataclass(frozen=True)
class QuickstartReport:
    """What the quickstart has to show."""

    training: RunSummary
    before: LossReport | None
    after: LossReport | None
    """None where training was stopped."""
    compressors: dict[str, float]
    """Bits per byte on the same held-out text."""
    samples_before: list[str]
    samples_after: list[str]
    charts: list[str]
    run_file: str


def quickstart(
    folder: Path,
    *,
    observers: list[Observer],
    say: Callable[[str], None] = lambda _line: None,
    scale: Scale = Scale(),
) -> QuickstartReport:
    """Does everything, or goes on where it was stopped; ``say`` is told what happens."""
    hardware = find_hardware()
    store = prepare_corpus(folder / "store", scale, say)
    plan = plan_run(write_run_file(folder / f"{RUN_NAME}.toml", scale, hardware))
    run_path = folder / "runs" / RUN_NAME
    part = TokenSlice.of(store.split(VALIDATION), start=0, tokens=None)
    say(f"training {plan.costs.parameters:,} parameters for {plan.num_steps:,} steps on {hardware.device}")
    placement = place_run(plan, RunDirectory(run_path), MachineOptions())
    summary = run_training(plan, run_path, placement, observers=observers)
    if not is_done(summary):
        return QuickstartReport(summary, None, None, {}, [], [], [], str(folder / f"{RUN_NAME}.toml"))
    say("measuring on the held-out text, before and after training")
    untrained = untrained_model(plan, hardware)
    before = evaluate_loss(untrained, plan.tokenizer, part, hardware)
    loaded = open_model(str(run_path), hardware)
    after = evaluate_loss(loaded.model, plan.tokenizer, part, hardware)
    record_loss(loaded, after, store=str(store.path), split=VALIDATION, start=0, precision="fp32")
    return QuickstartReport(
        training=summary,
        before=before,
        after=after,
        compressors=compressor_bits_per_byte(text_of(part.split, plan.tokenizer)),
        samples_before=sample_texts(untrained, plan.tokenizer),
        samples_after=sample_texts(loaded.model, plan.tokenizer),
        charts=[str(path) for path in sorted(RunDirectory(run_path).charts.glob("*.png"))],
        run_file=str(folder / f"{RUN_NAME}.toml"),
    )


def prepare_corpus(path: Path, scale: Scale, say: Callable[[str], None]) -> TokenStore:
    """The store of the embedded corpus: made once, with a vocabulary learnt from its training part."""
    if (path / MANIFEST).is_file():
        return open_store(path)
    rule = SplitRule(HELD_OUT_SHARE)
    source = PythonDocs(tuple(name for name in scale.packages if name == "stdlib" or importlib.util.find_spec(name)))
    say(f"reading the documentation inside {', '.join(source.packages)}")
    documents = InMemory.of(source)
    say(f"learning a vocabulary of {scale.vocabulary_size:,} from {len(documents.texts):,} documents")
    tokenizer = train_byte_pairs(training_documents([documents], rule), vocab_size=scale.vocabulary_size)
    store = prepare_store([documents], tokenizer, path, rule=rule)
    tokens = {name: f"{split.tokens:,}" for name, split in store.manifest.splits.items()}
    say(f"token store: {tokens['train']} tokens to train on, {tokens[VALIDATION]} held out")
    return store


def write_run_file(path: Path, scale: Scale, hardware: Hardware) -> Path:
    """The quickstart's run file; one that is there already is kept, edits and all."""
    if not path.exists():
        prompts = "[" + ", ".join(f'"{prompt}"' for prompt in PROMPTS) + "]"
        precision = fast_16bit_precision(hardware.device)
        text = RUN_FILE.format(name=RUN_NAME, precision=precision, prompts=prompts, tokens=f"{scale.tokens:_}")
        write_atomically(path, text)
    return path


def untrained_model(plan: PlannedRun, hardware: Hardware) -> LanguageModel:
    """The model as it was before the first step."""
    model = build_empty(plan.config.model, hardware.device)
    initialise(model, plan.config.model, seed=plan.config.train.seed)
    return model.eval()


def sample_texts(model: LanguageModel, tokenizer: Tokenizer) -> list[str]:
    """A continuation of each prompt."""
    return [continue_text(model, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS, seed=1) for prompt in PROMPTS]
