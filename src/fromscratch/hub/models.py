"""Models on the Hugging Face Hub: their configuration, weights and tokenizer, downloaded into its cache.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean everywhere. Code
that a repository brings is neither downloaded nor run.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fromscratch.errors import FromScratchError, UsageError
from fromscratch.hub.errors import HUB_PREFIX, HubError, refusal, status_of

NAME = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
WANTED = ("*.json", "*.safetensors", "merges.txt", "vocab.bpe")
PICKLES = ("*.pth", "*.pt", "pytorch_model.bin")

Result = TypeVar("Result")


def parse_name(word: str) -> tuple[str, str | None] | None:
    """Repository and revision of ``owner/name``, ``hf://owner/name`` or ``owner/name@revision``, or None."""
    found = NAME.fullmatch(word)
    return (found.group(1), found.group(2)) if found else None


def download_model(word: str) -> Path:
    """The folder of a model in the Hub's cache, downloaded where it is not there yet.

    Raises:
        UsageError: no such repository, no access, or offline and not in the cache.
        HubError: the Hub cannot be reached or fails.
    """
    from huggingface_hub import snapshot_download

    named = parse_name(word)
    if named is None:
        raise UsageError(f"{word}: not a model on the Hub; write it as hf://owner/name")
    repository, revision = named

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))

    folder = asking_the_hub(f"{HUB_PREFIX}{repository}", lambda: fetch(WANTED))
    if not any(folder.glob("*.safetensors")):
        folder = asking_the_hub(f"{HUB_PREFIX}{repository}", lambda: fetch((*WANTED, *PICKLES)))
    return folder


def asking_the_hub(what: str, call: Callable[[], Result]) -> Result:
    """The call's result, its failures in one sentence that shows no token. Raises as ``download_model``."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return call()
    except FromScratchError:
        raise
    except Exception as error:
        if refused := refusal(what, error):
            raise refused from None
        status = status_of(error)
        if status is not None:
            raise HubError(f"{what}: the Hub answered {status}; try again later") from None
        if isinstance(error, LocalEntryNotFoundError | OSError) or "httpx" in type(error).__module__:
            raise HubError(
                f"{what}: {constants.ENDPOINT} cannot be reached ({type(error).__name__}), and it is not in the cache "
                f"{constants.HF_HUB_CACHE}"
            ) from None
        raise
