"""Prepares a corpus, trains a tokenizer and a small model, and evaluates it: offline, in a few minutes.

It calls the same functions as the other commands. Its folder then holds a token store, a run file and a
run, for further experiments.
"""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fromscratch.data.prepare import VALIDATION, SplitRule, prepare_store, training_documents
from fromscratch.data.store import TokenStore, open_store
from fromscratch.evaluation.compressors import compressor_bits_per_byte, text_of
from fromscratch.evaluation.loss import LossReport, measure_loss, save_loss
from fromscratch.files import MANIFEST, write_atomically
from fromscratch.formats.model_sources import open_model
from fromscratch.generation.sampling import Sampling
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

HELD_OUT_FRACTION = 0.03
RUN_NAME = "quickstart"
PROMPTS = ("Return the", "Every effort moves you")
SAMPLE_TOKENS = 80
PARAGRAPH_PROMPT, PARAGRAPH_TOKENS, PARAGRAPH_SEEDS, MIN_PARAGRAPH_WORDS = "The", 100, 8, 40
PARAGRAPH_SAMPLING = Sampling(temperature=0.5, top_k=50)
RUN_FILE = """\
# A run file defines the result of a run. It does not describe the machine.
# Try:  fromscratch train {name}.toml --set train.seed=7 --name another-seed

[model]
preset = "modern-small"      # 4 layers, 96 wide, context 128: small, so that it sees more text in the same time
init = {{ kind = "gpt2", std = 0.06 }}

[data]
store = "store"
tokens = {tokens}
shuffle = true               # the store orders the documents by package

[train]
global_batch = 16
precision = "{precision}"
seed = 42
evaluate_every = 371
sample_every = 500
checkpoint_every = 371
optimizer = {{ kind = "muon", learning_rate = 0.02, adamw_learning_rate = 4e-3, embedding_learning_rate = 1e-2 }}
schedule = {{ kind = "linear", warmup_steps = {warmup_steps} }}
clip = {{ kind = "norm", max_norm = 1.0 }}

[eval]
tokens = 150_000
prompts = {prompts}
"""


@dataclass(frozen=True)
class Scale:
    """The size of the quickstart. The default takes three minutes on two cores."""

    packages: tuple[str, ...] = ("stdlib", "torch", "numpy", "matplotlib", "pandas")
    """Packages whose documentation is the corpus; those not installed are skipped."""
    vocabulary_size: int = 2_048
    tokens: int = 3_039_232
    """Training tokens: 1,484 steps."""
    warmup_steps: int = 100


@dataclass(frozen=True)
class Paragraph:
    """A sampled text that begins with a paragraph, and the seed that gives it."""

    text: str
    seed: int

    def arguments(self, model: str) -> list[str]:
        """Returns the command that prints the text."""
        sampling = ["--temperature", str(PARAGRAPH_SAMPLING.temperature), "--top-k", str(PARAGRAPH_SAMPLING.top_k)]
        length = ["--tokens", str(PARAGRAPH_TOKENS), "--seed", str(self.seed)]
        return ["fromscratch", "generate", model, PARAGRAPH_PROMPT, *sampling, *length]


@dataclass(frozen=True)
class QuickstartReport:
    """The results of the quickstart."""

    training: RunSummary
    before: LossReport | None
    after: LossReport | None
    """None if training was stopped."""
    compressors: dict[str, float]
    """Bits per byte of compression programs on the same held-out text."""
    samples_before: list[str]
    samples_after: list[str]
    paragraph: Paragraph | None
    """Of the trained model; None if training was stopped."""
    charts: list[str]
    run_file: str


def quickstart(
    folder: Path,
    *,
    observers: list[Observer],
    on_progress: Callable[[str], None] = lambda _line: None,
    scale: Scale = Scale(),
) -> QuickstartReport:
    """Runs the quickstart, or continues a stopped one. ``on_progress`` receives a line per stage."""
    hardware = find_hardware()
    store = prepare_corpus(folder / "store", scale, on_progress)
    plan = plan_run(write_run_file(folder / f"{RUN_NAME}.toml", scale, hardware))
    run_path = folder / "runs" / RUN_NAME
    part = TokenSlice.of(store.split(VALIDATION), start=0, tokens=None)
    on_progress(f"training {plan.costs.parameters:,} parameters for {plan.num_steps:,} steps on {hardware.device}")
    placement = place_run(plan, RunDirectory(run_path), MachineOptions(), on_progress=on_progress)
    summary = run_training(plan, run_path, placement, observers=observers)
    if not is_done(summary):
        return QuickstartReport(summary, None, None, {}, [], [], None, [], str(folder / f"{RUN_NAME}.toml"))
    on_progress("evaluating the untrained and the trained model on the held-out text")
    untrained = untrained_model(plan, hardware)
    before = measure_loss(untrained, plan.tokenizer, part, hardware).report
    loaded = open_model(str(run_path), hardware)
    after = measure_loss(loaded.model, plan.tokenizer, part, hardware).report
    save_loss(loaded, after, store=str(store.path), split=VALIDATION, start=0, precision="fp32")
    return QuickstartReport(
        training=summary,
        before=before,
        after=after,
        compressors=compressor_bits_per_byte(text_of(part.split, plan.tokenizer)),
        samples_before=sample_texts(untrained, plan.tokenizer),
        samples_after=sample_texts(loaded.model, plan.tokenizer),
        paragraph=sample_paragraph(loaded.model, plan.tokenizer),
        charts=[str(path) for path in sorted(RunDirectory(run_path).charts.glob("*.png"))],
        run_file=str(folder / f"{RUN_NAME}.toml"),
    )


def prepare_corpus(path: Path, scale: Scale, on_progress: Callable[[str], None]) -> TokenStore:
    """Opens the token store of the corpus, or creates it, with a tokenizer trained on its training split."""
    if (path / MANIFEST).is_file():
        return open_store(path)
    rule = SplitRule(HELD_OUT_FRACTION)
    source = PythonDocs(tuple(name for name in scale.packages if name == "stdlib" or importlib.util.find_spec(name)))
    on_progress(f"reading the documentation of {', '.join(source.packages)}")
    documents = InMemory.of(source)
    on_progress(f"training a tokenizer of {scale.vocabulary_size:,} ids on {len(documents.texts):,} documents")
    tokenizer = train_byte_pairs(training_documents([documents], rule), vocab_size=scale.vocabulary_size)
    store = prepare_store([documents], tokenizer, path, rule=rule)
    tokens = {name: f"{split.tokens:,}" for name, split in store.manifest.splits.items()}
    on_progress(f"token store: {tokens['train']} training tokens, {tokens[VALIDATION]} held-out tokens")
    return store


def write_run_file(path: Path, scale: Scale, hardware: Hardware) -> Path:
    """Writes the quickstart's run file, unless it exists: the user may have edited it."""
    if not path.exists():
        prompts = "[" + ", ".join(f'"{prompt}"' for prompt in PROMPTS) + "]"
        precision = fast_16bit_precision(hardware.device)
        sizes = {"tokens": f"{scale.tokens:_}", "warmup_steps": scale.warmup_steps}
        text = RUN_FILE.format(name=RUN_NAME, precision=precision, prompts=prompts, **sizes)
        write_atomically(path, text)
    return path


def untrained_model(plan: PlannedRun, hardware: Hardware) -> LanguageModel:
    """Returns the model with its first weights."""
    model = build_empty(plan.config.model, hardware.device)
    initialise(model, plan.config.model, seed=plan.config.train.seed)
    return model.eval()


def sample_texts(model: LanguageModel, tokenizer: Tokenizer) -> list[str]:
    """Returns a continuation of each prompt."""
    return [continue_text(model, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS, seed=1) for prompt in PROMPTS]


def sample_paragraph(model: LanguageModel, tokenizer: Tokenizer) -> Paragraph:
    """Samples with several seeds until a text begins with a long paragraph; returns the longest.

    A small model often writes a single short sentence, because its corpus is full of them.
    """
    found: list[Paragraph] = []
    for seed in range(PARAGRAPH_SEEDS):
        text = continue_text(
            model,
            tokenizer,
            PARAGRAPH_PROMPT,
            max_new_tokens=PARAGRAPH_TOKENS,
            seed=seed,
            sampling=PARAGRAPH_SAMPLING,
        )
        found.append(Paragraph(text, seed))
        if words_of_first_paragraph(text) >= MIN_PARAGRAPH_WORDS:
            break
    return max(found, key=lambda one: words_of_first_paragraph(one.text))


def words_of_first_paragraph(text: str) -> int:
    """Counts the words before the first empty line, without numbers and symbols."""
    return len(re.findall(r"(?<!\S)[^\W\d_]+[.,;:!?]?(?!\S)", text.partition("\n\n")[0]))
