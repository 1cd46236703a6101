"""Token stores on the Hugging Face Hub: fetched when a run names one, pushed and pulled by hand."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fromscratch.data.plain_store import is_plain_store
from fromscratch.data.store import TokenStore, open_store
from fromscratch.data.verify import verify_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST
from fromscratch.hub.datasets import DATASET, HubName, download, is_hub_name, list_files, try_again
from fromscratch.hub.errors import HUB_PREFIX

STORE_FILES = [MANIFEST, "*.safetensors", "tokenizer/*"]
CARD = "README.md"


def locate_store(word: str, *beside: Path) -> Path:
    """The folder of the store that a word names: a path (also beside some folder), or ``hf://owner/name``.

    A store on the Hub is downloaded into the Hub's cache, once per machine however many processes ask.

    Raises:
        UsageError: a Hub name that is malformed or not there.
        HubError: the Hub cannot be reached.
    """
    if is_hub_name(word):
        return _downloaded(HubName.parse(word, known=("revision",)))
    path = Path(word).expanduser()
    return next((folder / path for folder in beside if (folder / path).is_dir()), path)


def pull_store(word: str, out: Path) -> TokenStore:
    """Downloads a store into a folder that appears only when it is whole and verified.

    What was downloaded before an interruption is kept; of several processes one downloads.

    Raises:
        UsageError: no such store, or ``out`` holds something else.
        DataError: what was downloaded is no valid store.
    """
    name = HubName.parse(word, known=("revision",))
    with _locked(out.with_name(f".{out.name}.pull-lock")):
        if out.is_dir() and any(out.iterdir()):
            if _is_already(name, out):
                return open_store(out)
            raise UsageError(f"{out}: holds another store; choose another --out, or delete it")
        partial = out.with_name(f".{out.name}.pulling")
        _downloaded(name, STORE_FILES, folder=partial)
        check_whole(open_store(partial))
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    return open_store(out)


def push_store(store: TokenStore, word: str, *, card: str, private: bool) -> str:
    """Uploads a verified store and its card in one commit; returns the dataset's address.

    A failure leaves the dataset as it was, and the same call goes on.

    Raises:
        DataError: the store is damaged.
        UsageError: no access (HF_TOKEN).
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name = HubName.parse(word, known=())
    check_whole(store)
    _refuse_links_out(store)
    api = HfApi()
    what = f"{HUB_PREFIX}{name.repository}"
    url = try_again(what, lambda: api.create_repo(name.repository, repo_type=DATASET, private=private, exist_ok=True))
    operations = [CommitOperationAdd(CARD, card.encode())]
    operations += [CommitOperationAdd(p.relative_to(store.path).as_posix(), p) for p in store_files(store)]
    message = f"Upload a token store of {sum(s.tokens for s in store.manifest.splits.values()):,} tokens"
    try_again(what, lambda: api.create_commit(name.repository, operations, commit_message=message, repo_type=DATASET))
    return str(url)


def store_files(store: TokenStore) -> list[Path]:
    """Every file that belongs to a store."""
    shards = [store.shard_path(shard) for split in store.manifest.splits.values() for shard in split.shards]
    tokenizer = sorted(p for p in store.tokenizer_folder.rglob("*") if p.is_file())
    manifest = store.path / MANIFEST
    return ([manifest] if manifest.is_file() else []) + shards + tokenizer


def _refuse_links_out(store: TokenStore) -> None:
    """A link in a store that somebody else made could lead to any file of this machine."""
    inside = store.path.resolve()
    for path in store_files(store):
        if not path.resolve().is_relative_to(inside):
            raise DataError(f"{path}: is a link to a file outside of the store; put the file itself there to upload it")


def check_whole(store: TokenStore) -> None:
    """Raises DataError with the first of a store's problems."""
    problems = verify_store(store).problems
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _downloaded(name: HubName, patterns: list[str] | None = None, *, folder: Path | None = None) -> Path:
    from huggingface_hub import snapshot_download

    def fetched() -> Path:
        path = snapshot_download(
            name.repository,
            repo_type=DATASET,
            revision=name.revision,
            allow_patterns=patterns or STORE_FILES,
            local_dir=folder,
        )
        return Path(path)

    return try_again(f"{HUB_PREFIX}{name.repository}", fetched)


def _is_already(name: HubName, out: Path) -> bool:
    """Whether a folder holds the store of that name, judged by its manifest."""
    if MANIFEST not in list_files(name):
        return is_plain_store(out)
    manifest = out / MANIFEST
    return manifest.is_file() and manifest.read_bytes() == download(name, MANIFEST).read_bytes()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other processes of this machine that pull to the same place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.unlink(missing_ok=True)
