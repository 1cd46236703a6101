"""Stores without a manifest: ``train.safetensors`` and ``validation.safetensors``, each with ``tokens``.

This is the layout of ``gpjt/fineweb-gpt2-tokens``. The ids are assumed to be GPT-2's, unless the
folder has a ``tokenizer/`` of this package. The numbers of documents and bytes of text are unknown.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fromscratch.data.shards import Tokens, map_shard
from fromscratch.errors import DataError
from fromscratch.files import read_json_object

SPLIT_FILES = {"train": "train.safetensors", "validation": "validation.safetensors"}
SOURCE = "plain safetensors"
SAMPLED_BLOCKS, BLOCK_TOKENS = 64, 1 << 15
TOKENIZER_DESCRIPTION = Path("tokenizer", "tokenizer_description.json")
GPT2_DESCRIPTION: dict[str, Any] = {
    "kind": "gpt2",
    "name": "gpt2",
    "vocab_size": 50_257,
    "end_of_text": 50_256,
    "fingerprint": "ca7d60dd4edf647938a5fa75afefe762cbf0560b0fcb7740fe7ba655f9a912a3",
}


def is_plain_store(folder: Path) -> bool:
    """Returns whether a folder has the two files."""
    return all((folder / file).is_file() for file in SPLIT_FILES.values())


def plain_manifest(folder: Path) -> dict[str, Any]:
    """Makes the manifest that the folder lacks.

    Raises:
        DataError: a file is not a shard, or the two differ in dtype.
    """
    shards = {split: map_shard(folder / file) for split, file in SPLIT_FILES.items()}
    dtypes = {split: str(tokens.dtype) for split, tokens in shards.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{SPLIT_FILES[split]} {dtype}" for split, dtype in dtypes.items())
        raise DataError(f"store {folder}: its files hold tokens of different types ({listed})")
    described = folder / TOKENIZER_DESCRIPTION
    return {
        "store_format": 1,
        "tokenizer": read_json_object(described) if described.is_file() else GPT2_DESCRIPTION,
        "dtype": dtypes["train"],
        "splits": {split: _split(SPLIT_FILES[split], tokens) for split, tokens in shards.items()},
        "source": [SOURCE],
        "split_rule": {},
    }


def _split(file: str, tokens: Tokens) -> dict[str, Any]:
    counts = {"tokens": len(tokens), "documents": None, "bytes": None}
    return counts | {"shards": [{"file": file, **counts, "sha256": sampled_fingerprint(tokens)}]}


def sampled_fingerprint(tokens: Tokens) -> str:
    """Hashes the length and 64 blocks that are spread over the tokens, which takes milliseconds.

    The prefix ``sampled`` tells it from a checksum of the whole content.
    """
    digest = hashlib.sha256(f"{len(tokens)} {tokens.dtype}".encode())
    starts = np.linspace(0, max(0, len(tokens) - BLOCK_TOKENS), SAMPLED_BLOCKS).astype(np.int64)
    for start in np.unique(starts):
        digest.update(tokens[start : start + BLOCK_TOKENS].tobytes())
    return f"sampled:{digest.hexdigest()}"
