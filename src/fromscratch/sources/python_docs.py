"""A corpus without a download: the documentation inside every Python installation.

It holds docstrings of the standard library and of installed packages, the interpreter's help topics,
and the documentation of C extensions in calls such as ``add_docstr(torch.abs, "...")``. Source files
are parsed with ``ast``; nothing is imported or run. A first model can be trained on these megabytes
of real English with no network, no account and no licence question.
"""

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.sources.base import Document, Part

STANDARD_LIBRARY = "stdlib"
MIN_CHARACTERS = 40  # shorter docstrings are labels ("Return self."), not prose
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "__pycache__"}
DOCUMENTING_CALLS = {"add_docstr", "add_newdoc", "add_docstr_all", "_add_docstr"}
DOCUMENTED_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class PythonDocs:
    """Documents from Python source files: ``python-docs`` or ``python-docs:stdlib,torch,numpy``.

    Documents come in a fixed order and each text only once.
    """

    packages: tuple[str, ...] = ()
    """What to read; ``stdlib`` is the standard library, and empty means all that is installed."""

    @property
    def description(self) -> str:
        return "python-docs:" + ",".join(self.packages or ("stdlib", "*"))

    def left_out(self) -> str:
        return ""

    def parts(self) -> list[Part]:
        """Returns the corpus as one part: duplicates are removed across all packages.

        Raises:
            UsageError: a named package is not installed.
        """
        return [PythonDocsPart(tuple(self._roots()))]

    def _roots(self) -> Iterator[Path]:
        site_packages = Path(sysconfig.get_path("purelib"))
        for name in self.packages or (STANDARD_LIBRARY, *installed_packages(site_packages)):
            root = Path(sysconfig.get_path("stdlib")) if name == STANDARD_LIBRARY else site_packages / name
            if not root.is_dir():
                raise UsageError(
                    f"python-docs: package '{name}' is not installed in {site_packages}; "
                    f"install it, or name others ({STANDARD_LIBRARY} is the standard library)"
                )
            yield root


@dataclass(frozen=True)
class PythonDocsPart:
    """All documents below some folders, each text once."""

    roots: tuple[Path, ...]
    name: str = "python-docs"
    text_bytes: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(_files_below(self.roots))

    def documents(self) -> Iterator[Document]:
        return unique(text for path in self.files for text in documents_in(path))


def installed_packages(site_packages: Path) -> list[str]:
    """Lists the importable packages in a site-packages folder, sorted."""
    return sorted(entry.parent.name for entry in site_packages.glob("*/__init__.py"))


def _files_below(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if path.is_file() and not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1]):
                yield path


def documents_in(path: Path) -> Iterator[str]:
    """Yields the documents of one source file; none where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the file
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    texts = help_topics(tree) if path.match("pydoc_data/topics.py") else docstrings(tree)
    for text in texts:
        cleaned = clean(text)
        if len(cleaned) >= MIN_CHARACTERS:
            yield cleaned


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yields docstrings, and string arguments of the calls that document C functions."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED_NODES):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield text
        elif isinstance(node, ast.Call) and _called_name(node) in DOCUMENTING_CALLS:
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def help_topics(tree: ast.Module) -> Iterator[str]:
    """Yields the values of the dictionary in ``pydoc_data/topics.py``, which ``help('topic')`` prints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def clean(text: str) -> str:
    """Removes the indentation of the source and trailing blanks."""
    encodable = text.encode("utf-8", "replace").decode()  # an escape can spell half of a surrogate pair
    return "\n".join(line.rstrip() for line in inspect.cleandoc(encodable).splitlines()).strip()


def unique(documents: Iterable[str]) -> Iterator[str]:
    """Yields each document once, at its first place; keeps a hash of each in memory."""
    seen: set[bytes] = set()
    for document in documents:
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield document
