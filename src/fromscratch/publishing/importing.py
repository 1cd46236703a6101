"""``fromscratch import``: converts weights of another program to our format; compares the logits."""

import os
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.files import check_replaceable, read_json_object, sha256_of, write_atomically
from fromscratch.formats.book import settings_folders
from fromscratch.formats.gpt2 import OPENAI_REPOSITORIES
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.formats.reading import read_model, tokenizer_of
from fromscratch.formats.weights import WEIGHT_SUFFIXES
from fromscratch.hub.downloads import download_model
from fromscratch.hub.names import model_name
from fromscratch.publishing.seed_runs import BEST_CHECKPOINT, MODEL_JSON, TRAIN_JSON, convert_settings
from fromscratch.tokenizers.huggingface import HuggingFaceTokenizer


@dataclass(frozen=True)
class ImportReport:
    """Report of an import."""

    source: str
    format: str
    out: str
    parameters: int
    vocab_size: int
    tokenizer: str
    largest_logit_difference: float
    """Difference before and after the conversion, relative to the largest logit."""
    notes: list[str]
    run_file: str | None


def import_model(source: str, out: Path, *, tokenizer: str | None = None, num_heads: int | None = None) -> ImportReport:
    """Converts a model, compares its logits, and writes ``out`` atomically.

    Args:
        source: a file, a folder, ``owner/name`` on the Hub, or one of OpenAI's names.
        tokenizer: ``gpt2``, ``bytes`` or a path; by default the one beside the weights.
        num_heads: number of attention heads, for checkpoints that do not record it.

    Raises:
        UsageError, DataError: see ``read_model``; or ``out`` exists.
    """
    folder = check_replaceable(out, None, option="--out")
    path = weights_path(find_source(source))
    run_file = _run_file_beside(folder, path)
    found = read_model(path, num_heads=num_heads)
    if found.classes:
        raise UsageError(f"{source}: is a classifier, which needs no import; 'fromscratch classify' reads the folder")
    model = found.build(path)
    difference = found.check(model)
    vocab_size = model.vocab_size
    name = tokenizer or (None if found.tokenizer is None else str(found.tokenizer))
    opened_tokenizer = tokenizer_of(path, vocab_size=vocab_size, name=name)
    notes = list(found.notes)
    if opened_tokenizer.vocab_size < vocab_size:
        notes.append(
            f"the model's vocabulary is padded: {vocab_size} ids, but the tokenizer has {opened_tokenizer.vocab_size}"
        )
    if isinstance(opened_tokenizer, HuggingFaceTokenizer) and any(opened_tokenizer.frame()):
        notes.append("the tokenizer's special tokens at the beginning or end of every text are left out here")
    origin = {"source": source, "format": found.format, "files": _checksums(path), "notes": notes}
    write_model_folder(folder, found.config, model, opened_tokenizer, origin)
    if run_file is not None:
        notes.extend(_write_run_file(path, run_file))
    return ImportReport(
        source=source,
        format=found.format,
        out=str(out),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=vocab_size,
        tokenizer=opened_tokenizer.name,
        largest_logit_difference=difference,
        notes=notes,
        run_file=None if run_file is None else str(run_file),
    )


def find_source(source: str) -> Path:
    """Returns the file or folder that a source names; downloads it from the Hub. Raises UsageError."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = OPENAI_REPOSITORIES.get(source, source)
    if model_name(name):
        return download_model(name)
    raise UsageError(f"{source}: no such file or folder, and not owner/name on the Hub")


def weights_path(path: Path) -> Path:
    """Returns the best checkpoint of a run folder of the seed project; any other path unchanged."""
    is_run = (path / MODEL_JSON).is_file() and (path / BEST_CHECKPOINT).is_dir()
    return path / BEST_CHECKPOINT if is_run else path


def _checksums(path: Path) -> dict[str, str]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: sha256_of(file) for file in files if file.suffix in WEIGHT_SUFFIXES}


def _run_file_beside(folder: Path, path: Path) -> Path | None:
    """Returns the run file to write beside the model; None if the source has no settings of the seed project.

    Raises:
        UsageError: the file exists.
    """
    settings, target = settings_folders(path)[-1], folder.with_name(f"{folder.name}.toml")
    if not all((settings / name).is_file() for name in (MODEL_JSON, TRAIN_JSON)):
        return None
    if os.path.lexists(target):
        raise UsageError(f"{target}: exists already; give another --out, or move the file away")
    return target


def _write_run_file(path: Path, target: Path) -> list[str]:
    """Writes the settings of a seed project's run as a run file; returns notes for the user."""
    folder = settings_folders(path)[-1]
    model, train = read_json_object(folder / MODEL_JSON), read_json_object(folder / TRAIN_JSON)
    text, notes = convert_settings(model, train, name=folder.name)
    write_atomically(target, text)
    return notes
