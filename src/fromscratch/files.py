"""Files that are either complete or absent: atomic writes, checksums, sealed folders, strict JSON.

A *sealed folder* is written under a temporary name in the same parent folder. Every file is flushed to the
disk; ``manifest.json`` (size and SHA-256 of each file) is written last. Then the folder is renamed. Readers
accept only files that match the manifest. So a crash at any moment leaves the old folder or the new one.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fromscratch.errors import DataError, UsageError

MANIFEST = "manifest.json"
SEAL = "manifest_sha256"
FORMAT_VERSION = 1
HASH_BLOCK_BYTES = 1 << 20
WRITE_BLOCK_BYTES = 16 << 20
MAX_SHOWN_NAMES = 5


class NewerFormatError(DataError):
    """A sealed folder in a format of a later version of this package. It is not damaged."""


def data_home() -> Path:
    """Returns the user's data folder: ``$FROMSCRATCH_HOME``, else the one of the XDG base directory specification."""
    if home := os.environ.get("FROMSCRATCH_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "fromscratch"


def readable_bytes(num_bytes: int) -> str:
    """Returns a size with three digits: 1.96 GB, 512 kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def readable_seconds(seconds: float) -> str:
    """Returns a duration in seconds, minutes or hours: 95 s, 14 minutes, 2.5 hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def readable_dollars(amount: float) -> str:
    """Returns dollars with cents; two digits of a part of a cent."""
    return f"${amount:,.2f}" if amount >= 0.01 or amount == 0 else f"${amount:.2g}"


def to_strict_json(value: Any, *, indent: int | None = None) -> str:
    """Returns JSON that every reader accepts: NaN and infinities become null, lone surrogates their escapes."""
    text = json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()  # Python's escape of a surrogate is JSON's


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises DataError when the file is missing or holds anything else."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: not a regular file, expected a JSON object")  # reading a pipe would block
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}, expected a JSON object")
    return value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file. Readers see either the complete old content or the complete new content."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextmanager
def locked(path: Path, *, refusal: str = "") -> Iterator[None]:
    """Holds an exclusive lock on a file, which is created with its folder. The lock ends with the process.

    Waits while another process holds it. With a ``refusal``, raises UsageError with that message instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except OSError:
            if refusal:
                raise UsageError(refusal) from None
            raise
        yield


def flush_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Waits until a folder's entries (creations, renames) are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


FileEntry = dict[str, Any]
"""The entry of a file in a manifest: ``bytes`` and ``sha256``."""


def write_checked(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Writes a new file, flushes it to the disk, and returns its size and checksum."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            for begin in range(0, len(view), WRITE_BLOCK_BYTES):
                block = view[begin : begin + WRITE_BLOCK_BYTES]
                digest.update(block)
                while block:
                    block = block[file.write(block) :]
            size += len(view)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


@contextmanager
def sealed_folder(destination: Path, *, written: dict[str, FileEntry] | None = None, **metadata: Any) -> Iterator[Path]:
    """Yields a temporary folder, which becomes ``destination`` when the block ends without an error.

    ``metadata`` is recorded in the manifest. On an error nothing remains.

    Args:
        written: the entries that ``write_checked`` returned, by file name. These files are not read again.
            The block may add entries.
    """
    temporary = destination.with_name(f".{destination.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _seal(temporary, metadata, written or {})
        _rename_into_place(temporary, destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_folder(destination.parent)


def _rename_into_place(temporary: Path, destination: Path) -> None:
    """Renames the folder. What has that name is renamed first and deleted last; of a link, only the link."""
    if not os.path.lexists(destination):
        temporary.replace(destination)
        return
    old = destination.with_name(f".{destination.name}.old.tmp-{os.getpid()}")
    destination.replace(old)
    try:
        temporary.replace(destination)
    except BaseException:
        old.replace(destination)
        raise
    remove(old)


def _seal(folder: Path, metadata: dict[str, Any], written: dict[str, FileEntry]) -> None:
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
            continue
        name = path.relative_to(folder).as_posix()
        if name in written and path.stat().st_size == written[name]["bytes"]:
            files[name] = written[name]
            continue
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner may read
        flush_file(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = json.loads(to_strict_json({"format_version": FORMAT_VERSION, **metadata, "files": files}))
    manifest[SEAL] = _seal_of(manifest)
    write_atomically(folder / MANIFEST, to_strict_json(manifest, indent=1))


def _seal_of(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of the rest of a manifest. It detects a flipped bit in the manifest itself."""
    rest = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a sealed folder's manifest. Raises DataError when it is absent, malformed or of a newer format."""
    manifest = read_json_object(folder / MANIFEST)
    version, files = manifest.get("format_version"), manifest.get("files")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{folder}: written in format {version}, this version reads up to {FORMAT_VERSION}; upgrade"
        )
    if not isinstance(version, int) or not isinstance(files, dict):
        raise DataError(f"{folder / MANIFEST}: malformed, it has no format_version and list of files")
    if SEAL in manifest and manifest[SEAL] != _seal_of(manifest):
        raise DataError(f"{folder / MANIFEST}: its content does not match its own SHA-256; the file is damaged")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise DataError(f"{folder / MANIFEST}: malformed, it lacks the size or the SHA-256 of {name}")
        if Path(name).is_absolute() or ".." in Path(name).parts or not name or "\0" in name:
            raise DataError(f"{folder / MANIFEST}: malformed, it lists {name}, which is not in the folder")
    return manifest


def problems_of(folder: Path, *, checksums: bool = True) -> Iterator[str]:
    """Yields one message for each missing or damaged file of a sealed folder. Checks sizes, then SHA-256.

    Raises:
        DataError: the manifest itself is absent, malformed or of a newer format.
    """
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / name
        try:
            if not path.is_file():
                yield f"{path}: missing, but listed in {MANIFEST}"
            elif (size := path.stat().st_size) != expected["bytes"]:
                yield f"{path}: {size} bytes, but {MANIFEST} says {expected['bytes']}"
            elif checksums and sha256_of(path) != expected["sha256"]:
                yield f"{path}: its content does not match the SHA-256 in {MANIFEST}; the file is damaged"
        except OSError as error:
            yield f"{path}: cannot be read ({error.strerror})"


def verify_folder(folder: Path, *, checksums: bool = True) -> dict[str, Any]:
    """Checks a sealed folder against its manifest (sizes, then SHA-256) and returns the manifest.

    Raises:
        DataError: names the first file that is missing, of another size, or changed.
    """
    for problem in problems_of(folder, checksums=checksums):
        raise DataError(problem)
    return read_manifest(folder)


def check_replaceable(folder: Path, kind: str | None, *, option: str) -> Path:
    """Returns the real path of a folder that a command may write without harm, links followed.

    It does not exist, is empty, or is a sealed folder of that kind in which nothing was added or changed.

    Args:
        kind: the beginning of the ``kind`` in its manifest; None if no folder with content may be replaced.
        option: the option that names the folder, for the message.

    Raises:
        UsageError: it says what is there, or why no folder can be made there.
    """
    try:
        found = folder.expanduser().resolve()
        problem = _not_possible(found) or _not_ours(found, kind)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        problem = f"cannot be used ({error})"
    if problem:
        raise UsageError(
            f"{option} {folder}: {problem}; nothing was written. Give another folder, or move this one away"
        )
    return found


def _not_possible(folder: Path) -> str:
    """Says why a folder cannot be put in the place of this one; empty if it can."""
    if folder.exists() and not folder.is_dir():
        return "is a file, not a folder"
    if Path.cwd().is_relative_to(folder):
        return "is the current folder or above it"
    if folder.is_mount():
        return "is a mount point, which cannot be replaced"
    return parent_problem(folder)


def parent_problem(path: Path) -> str:
    """Says why nothing new can be made at an absolute path; empty if the nearest folder above it is writable."""
    parent = next(above for above in path.parents if above.exists())
    if not parent.is_dir():
        return f"{parent} is a file, not a folder"
    return "" if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"


def _not_ours(folder: Path, kind: str | None) -> str:
    """Says why a folder may not be replaced; empty if it may."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not there:
        return ""
    holds = f"holds {shortened(there)}"
    if kind is None:
        return f"exists already and {holds}"
    try:
        manifest = read_manifest(folder)
    except DataError:
        return f"{holds}, which this command did not write"
    if not str(manifest.get("kind")).startswith(kind):
        return f"{holds}, a folder of another kind"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_filled(path)}
    listed = {MANIFEST, *manifest["files"]}
    listed |= {str(parent) for name in manifest["files"] for parent in PurePosixPath(name).parents}
    if added := sorted(names - listed):
        return f"also holds {shortened(added)}, which this command did not write"
    present = (problem for problem in problems_of(folder) if "missing, but listed" not in problem)
    changed = next(present, "")
    return f"a file was changed since it was written ({changed})" if changed else ""


def _is_filled(path: Path) -> bool:
    """Whether a path is a folder with content, which other paths stand for."""
    return path.is_dir() and not path.is_symlink() and any(path.iterdir())


def shortened(names: list[str]) -> str:
    """Returns the first names of a list, for a message."""
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (", ..." if len(names) > MAX_SHOWN_NAMES else "")


def remove(path: Path) -> None:
    """Deletes a file, a link or a whole folder; links are not followed. What of a folder cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def point_link(link: Path, target_name: str) -> None:
    """Makes ``link`` a symbolic link to a sibling. Replaces an older link atomically."""
    temporary = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target_name)
    try:
        temporary.replace(link)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(link.parent)
