"""Estimates the disk space of a store from a sample of the text, before the work starts."""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np

from fromscratch.data.engines.base import DocumentEncoder, Task
from fromscratch.data.shards import dtype_for
from fromscratch.errors import UsageError
from fromscratch.sources.base import documents_in

SAMPLE_CHARACTERS = 100_000
SAMPLED_DOCUMENTS = 100
MARGIN = 1.1


def check_disk_space(out: Path, tasks: list[Task], tokenizer: DocumentEncoder) -> None:
    """Raises UsageError where the tokens of the tasks will not fit on the disk of ``out``."""
    text_bytes = sum(task.part.text_bytes for task in tasks)
    if text_bytes == 0:
        return
    needed = int(text_bytes * _tokens_per_byte(tasks, tokenizer) * np.dtype(dtype_for(tokenizer.vocab_size)).itemsize)
    free = shutil.disk_usage(out).free
    if needed * MARGIN > free:
        raise UsageError(
            f"{out}: the store needs about {needed * MARGIN / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free "
            "there; choose another --out, or free space"
        )


def _tokens_per_byte(tasks: list[Task], tokenizer: DocumentEncoder) -> float:
    """Measures the beginning of the corpus; assumes one token per byte where it holds no text."""
    documents = (d for task in tasks for d in islice(documents_in(task.part), SAMPLED_DOCUMENTS))
    texts, characters = [], 0
    for document in islice(documents, SAMPLED_DOCUMENTS):
        if isinstance(document, str) and document:
            texts.append(document[:SAMPLE_CHARACTERS])
            characters += len(texts[-1])
        if characters >= SAMPLE_CHARACTERS:
            break
    sampled_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_documents(texts)) if texts else 0
    return tokens / sampled_bytes if sampled_bytes else 1.0
