"""The embedded corpus: the documentation that every Python installation already carries.

Docstrings of the standard library and of installed packages, the interpreter's help topics, and the
documentation that C extensions keep in calls such as ``add_docstr(torch.abs, "...")``. Everything is
found by parsing source files with ``ast``; nothing is imported or run. So a first model can be
trained on megabytes of real English with no download, no account and no licence question.
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
MINIMUM_CHARACTERS = 40  # shorter docstrings are labels ("Return self."), not prose
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "__pycache__"}
DOCUMENTING_CALLS = {"add_docstr", "add_newdoc", "add_docstr_all", "_add_docstr"}
DOCUMENTED_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class PythonDocs:
    """Documents from Python source files: ``python-docs`` or ``python-docs:stdlib,torch,numpy``.

    ``packages`` names what to read, ``stdlib`` being the standard library; empty means all that is
    installed. Documents come in a fixed order (package, file, line) and each text only once.
    """

    packages: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        return "python-docs:" + ",".join(self.packages or ("stdlib", "*"))

    def parts(self) -> list[Part]:
        """The whole corpus as one part: duplicates are removed across all packages.

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

    def documents(self) -> Iterator[Document]:
        return unique(_documents_below(self.roots))


def installed_packages(site_packages: Path) -> list[str]:
    """Names of the importable packages in a site-packages folder, sorted."""
    return sorted(entry.parent.name for entry in site_packages.glob("*/__init__.py"))


def _documents_below(roots: Iterable[Path]) -> Iterator[str]:
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1]):
                yield from documents_in(path)


def documents_in(path: Path) -> Iterator[str]:
    """The documents of one source file; nothing where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    texts = help_topics(tree) if path.match("pydoc_data/topics.py") else docstrings(tree)
    for text in texts:
        cleaned = clean(text)
        if len(cleaned) >= MINIMUM_CHARACTERS:
            yield cleaned


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings, and string arguments of the calls that document C functions, in source order."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED_NODES):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield text
        elif isinstance(node, ast.Call) and _called_name(node) in DOCUMENTING_CALLS:
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def help_topics(tree: ast.Module) -> Iterator[str]:
    """The values of the one dictionary in ``pydoc_data/topics.py``, the interpreter's ``help('topic')``."""
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
    """Text without the indentation of its source and without trailing blanks."""
    encodable = text.encode("utf-8", "replace").decode()  # an escape may have made half a surrogate pair
    return "\n".join(line.rstrip() for line in inspect.cleandoc(encodable).splitlines()).strip()


def unique(documents: Iterable[str]) -> Iterator[str]:
    """Each document once, at its first place; constant memory per document (its hash)."""
    seen: set[bytes] = set()
    for document in documents:
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield document
