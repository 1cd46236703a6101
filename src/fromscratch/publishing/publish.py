"""Publishes a model to a folder or to the Hugging Face Hub."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.files import check_replaceable
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import PUBLISHED, choose_format, export_model
from fromscratch.publishing.pushing import push_folder, repository_of


@dataclass(frozen=True)
class Destination:
    """Where a model is published: a folder or a repository; the other is None."""

    folder: Path | None
    repository: str | None
    private: bool = False
    """Whether a new repository is private."""
    collection: str | None = None
    """The slug of a collection on the Hub to add the model to."""

    @classmethod
    def of(cls, to: str, *, private: bool = False, collection: str | None = None) -> "Destination":
        """Checks a destination before a model is loaded.

        Args:
            to: a folder, or ``hf://owner/name``.

        Raises:
            UsageError: not a repository's name, or a folder with other files.
        """
        if to.startswith("hf:"):
            return cls(None, repository_of(to), private, collection)
        if private or collection:
            raise UsageError(f"--private and --collection need a Hub repository, but --to {to} is a folder")
        return cls(check_replaceable(Path(to), PUBLISHED, option="--to"), None)


@dataclass(frozen=True)
class PublishReport:
    """What was published."""

    folder: str | None
    """None for a repository."""
    format: str
    files: dict[str, int]
    """Sizes in bytes, by file name."""
    repository: str | None = None
    uploaded: bool = False
    """Whether the files were uploaded; without ``upload``, they are only listed."""
    url: str | None = None
    commit: str | None = None


def publish_model(
    loaded: LoadedModel,
    destination: Destination,
    *,
    format_name: str | None = None,
    license_name: str = "apache-2.0",
    title: str | None = None,
    upload: bool = False,
) -> PublishReport:
    """Writes a folder that transformers loads, or uploads it in one commit.

    Args:
        format_name: ``native`` or ``custom``; by default ``native`` if the architecture permits it.
        upload: whether to upload to the repository; otherwise its files are only listed.

    Raises:
        UsageError: no such format, or it does not permit the architecture; or access to the repository is denied.
        HubError: the Hub failed; nothing was committed.
    """
    chosen = choose_format(loaded.config, format_name)
    repository = destination.repository
    card = CardSettings(license=license_name, title=title, repository=repository)
    with tempfile.TemporaryDirectory() as temporary:
        folder = destination.folder or Path(temporary) / str(repository).rpartition("/")[2]
        exported = export_model(loaded, folder, format_name=chosen, card=card)
        if repository is None:
            return PublishReport(exported.folder, chosen, exported.files)
        if not upload:
            return PublishReport(None, chosen, exported.files, repository)
        pushed = push_folder(
            folder, f"hf://{repository}", private=destination.private, collection=destination.collection
        )
    return PublishReport(
        None, chosen, exported.files, pushed.repository, uploaded=True, url=pushed.url, commit=pushed.commit
    )
