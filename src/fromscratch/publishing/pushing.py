"""To the Hugging Face Hub: one commit with every file, so that a failure half-way leaves nothing."""

from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.files import MANIFEST
from fromscratch.hub.names import HUB_PREFIX, model_name
from fromscratch.hub.requests import ask_hub


@dataclass(frozen=True)
class PushReport:
    """What went up."""

    repository: str
    url: str
    commit: str


def push_folder(folder: Path, destination: str, *, private: bool = False, collection: str | None = None) -> PushReport:
    """Creates the repository where it does not exist, and commits what differs. Safe to repeat.

    Args:
        destination: ``hf://owner/name``.
        collection: the slug of a collection to add the model to.

    Raises:
        UsageError: not a repository's name, or no access.
        HubError: the Hub failed; nothing was committed.
    """
    from huggingface_hub import HfApi

    repository = repository_of(destination)
    what = f"{HUB_PREFIX}{repository}"
    api = HfApi()
    ask_hub(what, lambda: api.create_repo(repository, private=private, exist_ok=True))
    commit = ask_hub(
        what,
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
    """``owner/name`` of ``hf://owner/name``. Raises UsageError."""
    name = model_name(destination)
    if not destination.startswith(HUB_PREFIX) or name is None or name.parameters:
        raise UsageError(f"--to {destination}: not a repository's name; write it as hf://owner/name")
    return name.repository
