"""Uploads a folder to the Hugging Face Hub in one commit; a failed upload leaves no partial result."""

from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.files import MANIFEST
from fromscratch.hub.names import HUB_PREFIX, model_name
from fromscratch.hub.requests import ask_hub


@dataclass(frozen=True)
class PushReport:
    """Report of an upload."""

    repository: str
    url: str
    commit: str


def push_folder(folder: Path, destination: str, *, private: bool = False, collection: str | None = None) -> PushReport:
    """Creates the repository if it does not exist, and commits the changed files. Safe to repeat.

    Args:
        destination: ``hf://owner/name``.
        collection: the slug of a collection to add the model to.

    Raises:
        UsageError: the name is not a repository, or access is denied.
        HubError: the Hub failed; nothing was committed.
    """
    from huggingface_hub import HfApi

    repository = repository_of(destination)
    subject = f"{HUB_PREFIX}{repository}"
    api = HfApi()
    ask_hub(subject, lambda: api.create_repo(repository, private=private, exist_ok=True))
    commit = ask_hub(
        subject,
        lambda: api.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=[MANIFEST], commit_message="Publish the model"
        ),
    )
    if collection:
        ask_hub(
            f"collection {collection}", lambda: api.add_collection_item(collection, repository, "model", exists_ok=True)
        )
    return PushReport(repository, f"{api.endpoint}/{repository}", str(commit.oid))


def repository_of(destination: str) -> str:
    """Returns ``owner/name`` of ``hf://owner/name``. Raises UsageError."""
    name = model_name(destination)
    if not destination.startswith(HUB_PREFIX) or name is None or name.parameters:
        raise UsageError(f"--to {destination}: not a repository's name; write it as hf://owner/name")
    return name.repository
