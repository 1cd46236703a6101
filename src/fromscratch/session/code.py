"""Identifies the code that computes a run: the package's modules that a result depends on."""

import hashlib
from functools import cache
from pathlib import Path

COMPUTING = (
    *("models", "optim", "training", "finetuning", "data"),
    *("evaluation/classification.py", "randomness.py", "machine/precision.py"),
)
CODE = "code"
"""Its key in ``machine.json``."""


@cache
def code_hash() -> str:
    """Returns a hash of the modules' text."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in COMPUTING:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
