"""Downloads from the Hub into its cache: the files of a dataset, a token store, a model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fromscratch.errors import UsageError
from fromscratch.files import sha256_of
from fromscratch.hub.names import HubName, model_name
from fromscratch.hub.requests import ask_hub, is_offline

SHA256 = re.compile(r"[0-9a-f]{64}")
MODEL_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.bpe")
PICKLED_FILES = ("*.pth", "*.pt", "pytorch_model.bin")


def list_files(name: HubName) -> list[str]:
    """Lists the paths of all files of a repository, sorted; offline, of those in the cache."""
    from huggingface_hub import HfApi

    if is_offline():
        snapshot = download_snapshot(name, ())
        return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())

    def listed() -> list[str]:
        tree = HfApi().list_repo_tree(name.repository, recursive=True, revision=name.revision, repo_type=name.kind)
        return sorted(entry.path for entry in tree if hasattr(entry, "size"))

    return ask_hub(str(name), listed)


def download_file(name: HubName, file: str) -> Path:
    """Returns one file of a repository, from the cache or downloaded into it.

    An interrupted transfer continues where it stopped. Size and, where the Hub states it, SHA-256 are
    checked. Processes that ask for the same file at once download it once.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache

    which: dict[str, Any] = {"repo_type": name.kind, "revision": name.revision}
    cached = try_to_load_from_cache(name.repository, file, **which)

    def downloaded() -> Path:
        path = Path(hf_hub_download(name.repository, file, **which))
        content = path.resolve()
        if not isinstance(cached, str) and SHA256.fullmatch(content.name) and sha256_of(content) != content.name:
            content.unlink()
            raise OSError("the content does not match its SHA-256")
        return path

    return ask_hub(hf_hub_url(name.repository, file, **which), downloaded)


def download_snapshot(name: HubName, patterns: Sequence[str], *, folder: Path | None = None) -> Path:
    """Downloads the files that match the patterns; returns their folder, which is in the cache by default."""
    from huggingface_hub import snapshot_download

    def downloaded() -> str:
        return snapshot_download(
            name.repository,
            repo_type=name.kind,
            revision=name.revision,
            allow_patterns=list(patterns),
            local_dir=folder,
        )

    return Path(ask_hub(str(name), downloaded))


def download_model(text: str) -> Path:
    """Downloads the configuration, weights and tokenizer of a model; returns their folder in the cache.

    Code of the repository is neither downloaded nor run. Pickled weights are downloaded only where
    there are no others.

    Raises:
        UsageError: no such repository, no access, or offline and not in the cache.
        HubError: the Hub cannot be reached or fails.
    """
    name = model_name(text)
    if name is None:
        raise UsageError(f"{text}: not a model on the Hub; write it as hf://owner/name")
    folder = download_snapshot(name, MODEL_FILES)
    if not any(folder.glob("*.safetensors")):
        folder = download_snapshot(name, (*MODEL_FILES, *PICKLED_FILES))
    return folder
