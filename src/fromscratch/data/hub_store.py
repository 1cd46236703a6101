"""Token stores on the Hugging Face Hub: found by name, pulled and pushed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fromscratch.data.plain_store import is_plain_store
from fromscratch.data.store import TokenStore, open_store
from fromscratch.data.verify import verify_store
from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, check_replaceable, locked
from fromscratch.hub.downloads import download_file, download_snapshot, list_files
from fromscratch.hub.names import REVISION, HubName, dataset_name, has_hub_prefix
from fromscratch.hub.requests import ask_hub

STORE_FILES = (MANIFEST, "*.safetensors", "tokenizer/*")
CARD = "README.md"


def locate_store(name: str, *folders: Path) -> Path:
    """Returns the folder of a store: a path, relative to this folder or one of ``folders``, or ``hf://owner/name``.

    A store on the Hub is downloaded into the Hub's cache, once per machine for any number of processes.

    Raises:
        UsageError: a malformed name, or no such store on the Hub.
        HubError: the Hub cannot be reached.
    """
    if has_hub_prefix(name):
        return download_snapshot(dataset_name(name, allowed=(REVISION,)), STORE_FILES)
    path = Path(name).expanduser()
    return next((folder / path for folder in folders if (folder / path).is_dir()), path)


def pull_store(source: str, out: Path) -> TokenStore:
    """Downloads a store into a folder that appears only when it is complete and verified.

    An interrupted download continues. Processes that pull to the same folder at once download once.

    Raises:
        UsageError: no such store, or ``out`` holds something else.
        DataError: the download is not a valid store.
    """
    name, given = dataset_name(source, allowed=(REVISION,)), out
    out = out.expanduser().resolve()
    if not _is_store_of(name, out):
        check_replaceable(given, None, option="--out")
    with _locked(out.with_name(f".{out.name}.pull-lock")):
        if _is_store_of(name, out):
            return open_store(out)
        check_replaceable(given, None, option="--out")  # another process may have written it meanwhile
        partial = out.with_name(f".{out.name}.pulling")
        download_snapshot(name, STORE_FILES, folder=partial)
        check_store(open_store(partial))
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    return open_store(out)


def push_store(store: TokenStore, destination: str, *, card: str, private: bool) -> str:
    """Uploads a verified store and its card in one commit; returns the address of the dataset.

    A failure leaves the dataset unchanged; the call can be repeated.

    Raises:
        DataError: the store is damaged.
        UsageError: no access (HF_TOKEN).
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name = dataset_name(destination)
    check_store(store)
    _reject_outside_links(store)
    api, repository = HfApi(), name.repository
    url = ask_hub(str(name), lambda: api.create_repo(repository, repo_type=name.kind, private=private, exist_ok=True))
    operations = [CommitOperationAdd(CARD, card.encode())]
    operations += [CommitOperationAdd(p.relative_to(store.path).as_posix(), p) for p in store_files(store)]
    message = f"Upload a token store of {sum(s.tokens for s in store.manifest.splits.values()):,} tokens"
    ask_hub(str(name), lambda: api.create_commit(repository, operations, commit_message=message, repo_type=name.kind))
    return str(url)


def store_files(store: TokenStore) -> list[Path]:
    """Lists the files of a store."""
    shards = [store.shard_path(shard) for split in store.manifest.splits.values() for shard in split.shards]
    tokenizer = sorted(p for p in store.tokenizer_folder.rglob("*") if p.is_file())
    manifest = store.path / MANIFEST
    return ([manifest] if manifest.is_file() else []) + shards + tokenizer


def _reject_outside_links(store: TokenStore) -> None:
    """Raises DataError at a link out of the store, which could publish any file of this machine."""
    inside = store.path.resolve()
    for path in store_files(store):
        if not path.resolve().is_relative_to(inside):
            raise DataError(f"{path}: is a link to a file outside of the store; put the file itself there to upload it")


def check_store(store: TokenStore) -> None:
    """Raises DataError with the first problem of a store."""
    problems = verify_store(store).problems
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _is_store_of(name: HubName, out: Path) -> bool:
    """Returns whether a folder holds the store of that name, by its manifest."""
    if not (out.is_dir() and any(out.iterdir())):
        return False
    if MANIFEST not in list_files(name):
        return is_plain_store(out)
    manifest = out / MANIFEST
    return manifest.is_file() and manifest.read_bytes() == download_file(name, MANIFEST).read_bytes()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other processes of this machine that pull to the same folder."""
    with locked(path):
        yield
    path.unlink(missing_ok=True)
