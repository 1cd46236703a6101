"""What holds for the source as a whole: levels, lengths, docstrings, fast starts, forbidden words."""

import ast
import logging
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "fromscratch"
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
PYTHON_FILES = sorted(path for folder in ("src", "tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py"))
SOURCE_FILES = [path for path in PYTHON_FILES if path.is_relative_to(SOURCE)]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ".json", ".sh", ""}
GENERATED_FOLDERS = {"runs", "quickstart", "results", "dist", "build", "__pycache__"}
FORBIDDEN = ("pickle" + ".load", "/wo" + "rk/", "/tmp" + "/wt", "/op" + "t/")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    """How messages name a file of the repository."""
    return path.relative_to(REPOSITORY).as_posix()


def repository_texts() -> Iterator[tuple[str, str]]:
    """Name and content of every text file that people write here."""
    for path in sorted(REPOSITORY.rglob("*")):
        inner = path.relative_to(REPOSITORY).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in inner)
        if hidden or GENERATED_FOLDERS & set(inner[:-1]) or path.suffix not in TEXT_SUFFIXES or not path.is_file():
            continue
        yield relative(path), path.read_text("utf-8")


def loaded_after_importing(module: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after one import."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_go_to_lower_levels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    status = lint_imports(config_filename=str(REPOSITORY / "pyproject.toml"), no_cache=True)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("fromscratch.")]:
        logging.getLogger(name).disabled = False  # the linter's own logging silences the loggers that it finds
    assert status == 0, capsys.readouterr().out


def test_every_package_has_its_level() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    layers = " ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"])
    named = {word.strip("()").removeprefix("fromscratch.") for word in layers.split() if word != "|"}
    parts = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} <= named


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fromscratch.config.loading", {"torch", "transformers", "numpy", "matplotlib"}),
        ("fromscratch.runs.directory", {"torch", "transformers", "numpy", "matplotlib", "pydantic"}),
        ("fromscratch.runs.overview", {"torch", "transformers", "numpy", "matplotlib", "pydantic"}),
        ("fromscratch.runs.cleaning", {"torch", "transformers", "numpy", "matplotlib", "pydantic"}),
        ("fromscratch.runs.details", {"torch", "transformers", "numpy", "matplotlib", "pydantic"}),
        ("fromscratch.runs.charts", {"torch", "transformers", "matplotlib"}),
        ("fromscratch.studies.verdicts", {"torch", "transformers", "matplotlib", "pydantic"}),
        ("fromscratch.cli.main", {"torch", "transformers", "numpy", "matplotlib", "pydantic", "pyarrow", "tokenizers"}),
    ],
)
def test_what_starts_fast_loads_nothing_heavy(module: str, unwanted: set[str]) -> None:
    assert not loaded_after_importing(module) & unwanted


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCE_FILES) > 50
    assert "src/fromscratch/files.py" in dict(repository_texts())


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in PYTHON_FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{relative(path)}:{node.name}": length
        for path in PYTHON_FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, Function) and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
    }
    assert long == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        relative(path)
        for path in PYTHON_FILES
        if (text := path.read_text("utf-8")).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []
    assert [relative(path) for path in SOURCE_FILES if not path.read_text("utf-8").strip()] == []


def test_everything_public_says_what_it_does() -> None:
    silent = [
        f"{relative(path)}:{node.name}"
        for path in SOURCE_FILES
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_") and not ast.get_docstring(node)
        if "overload" not in map(ast.unparse, node.decorator_list)  # the implementation has the docstring
    ]
    assert silent == []


def test_no_forbidden_words() -> None:
    found = [f"{name}: {word}" for name, text in repository_texts() for word in FORBIDDEN if word in text]
    assert found == []
