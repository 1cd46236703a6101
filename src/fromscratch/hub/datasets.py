"""The Hugging Face Hub as this package needs it: names, listing, downloads that try again, errors.

Everything goes through ``huggingface_hub``, so ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE`` mean what they mean everywhere. No message ever shows a token.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl

from fromscratch.errors import FromScratchError, UsageError
from fromscratch.files import sha256_of
from fromscratch.hub.errors import HUB_PREFIX, HubError, not_in_cache, refusal, status_of

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
DATASET = "dataset"
ATTEMPTS = 5
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.5, 60.0
PASSING_STATUS_CODES = {408, 425, 429, 500, 502, 503, 504}
SHA256 = re.compile(r"[0-9a-f]{64}")

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubName:
    """``hf://owner/name?key=value&...`` taken apart."""

    repository: str
    parameters: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, word: str, *, known: tuple[str, ...]) -> "HubName":
        """Raises UsageError where the name or a parameter is none."""
        rest = re.sub(r"^hf:/+(datasets/)?", "", word)
        repository, _, query = rest.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        if not REPOSITORY.fullmatch(repository.rstrip("/")):
            raise UsageError(f"{word}: not a dataset on the Hub; write it as hf://owner/name")
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise UsageError(f"{word}: unknown parameter '{unknown[0]}'; known are {', '.join(known)}")
        return cls(repository.rstrip("/"), parameters)

    @property
    def revision(self) -> str:
        return self.parameters.get("revision", "main")


def is_hub_name(word: str) -> bool:
    """Whether a word names something on the Hub (a path object may have eaten one slash)."""
    return word.startswith((HUB_PREFIX, HUB_PREFIX[:-1]))


def try_again(what: str, call: Callable[[], Result], *, sleep: Callable[[float], None] = time.sleep) -> Result:
    """Calls until it works: up to 5 times, waiting longer each time, as the server asks where it does.

    Raises:
        UsageError: offline and not in the cache, or the server says no (not found, no access).
        HubError: still failing at the last attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except FromScratchError:
            raise
        except Exception as error:
            if refused := refusal(what, error):
                raise refused from None
            status = status_of(error)
            if attempt == ATTEMPTS or (status is not None and status not in PASSING_STATUS_CODES):
                raise HubError(f"{what}: failed after {attempt} attempts ({_reason(error)}); try again later") from None
            sleep(_wait_seconds(error, attempt))
    raise AssertionError("unreachable")


def file_url(repository: str, file: str, revision: str) -> str:
    """Where a file of a dataset is, for messages."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file, repo_type=DATASET, revision=revision)


def list_files(name: HubName) -> list[str]:
    """Paths of all files of a dataset, sorted; offline, those in the cache."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        snapshot = _cached_snapshot(name)
        return sorted(p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file())

    def listed() -> list[str]:
        tree = HfApi().list_repo_tree(name.repository, recursive=True, revision=name.revision, repo_type=DATASET)
        return sorted(entry.path for entry in tree if hasattr(entry, "size"))

    return try_again(f"{HUB_PREFIX}{name.repository}", listed)


def download(name: HubName, file: str) -> Path:
    """A file of a dataset, from the cache or downloaded into it.

    A transfer that is cut goes on where it stopped; size and, where the Hub states one, SHA-256 are
    checked. Processes that ask for the same file at once download it once.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(name.repository, file, repo_type=DATASET, revision=name.revision)

    def downloaded() -> Path:
        path = Path(hf_hub_download(name.repository, file, repo_type=DATASET, revision=name.revision))
        content = path.resolve()
        if not isinstance(known, str) and SHA256.fullmatch(content.name) and sha256_of(content) != content.name:
            content.unlink()
            raise OSError("the content does not match its SHA-256")
        return path

    return try_again(file_url(name.repository, file, name.revision), downloaded)


def _cached_snapshot(name: HubName) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repository, repo_type=DATASET)
    reference = folder / "refs" / name.revision
    commit = reference.read_text().strip() if reference.is_file() else name.revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise not_in_cache(f"{HUB_PREFIX}{name.repository}")
    return snapshot


def _wait_seconds(error: Exception, attempt: int) -> float:
    """Twice as long each time, a little at random, or what the server's Retry-After says."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    if asked.isdecimal():
        return min(float(asked), MOST_WAIT_SECONDS)
    return min(FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.8, 1.2), MOST_WAIT_SECONDS)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no details'}"
