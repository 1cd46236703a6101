"""What ships beside the code says what the code does."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from fromscratch.cli.main import app
from fromscratch.config.loading import load_run_config, read_toml
from fromscratch.config.reference import reference
from tests.conftest import REPOSITORY

RUN_FILES = sorted(path for path in (REPOSITORY / "studies").rglob("*.toml") if "interventions" not in read_toml(path))


def test_the_reference_is_what_make_docs_writes() -> None:
    assert (REPOSITORY / "docs" / "run-file.md").read_text("utf-8") == reference(), "run: make docs"


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_shipped_run_files_load(file: Path) -> None:
    load_run_config(file)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in REPOSITORY.glob("docs/*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    file = REPOSITORY / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text("utf-8")):
        assert (file.parent / target).exists(), f"{page} links to {target}"


def test_the_run_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"), flags=re.DOTALL)
    file = tmp_path / "readme.toml"
    file.write_text(block)
    assert load_run_config(file).train.global_batch == 96


@pytest.mark.parametrize("page", sorted(p.name for p in REPOSITORY.glob("docs/*.md")))
def test_a_page_begins_with_what_to_type(page: str) -> None:
    first_lines = (REPOSITORY / "docs" / page).read_text("utf-8").splitlines()[:14]
    block = next((index for index, line in enumerate(first_lines) if line.startswith("```")), None)
    is_block = block is not None and any(re.search(r"fromscratch|\.sh", line) for line in first_lines[block + 1 :])
    assert is_block or any(line.startswith("| ") and "`fromscratch " in line for line in first_lines)


def commands_in(text: str) -> list[list[str]]:
    """The commands of a page, as words: in code blocks and between backticks."""
    blocks = re.findall(r"```(?:sh|bash)?\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [line for line in (*lines, *spans) if line.startswith("fromscratch ") and "|" not in line]
    return [shlex.split(line.replace("...", "").replace("'fit'", "fit")) for line in found]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in REPOSITORY.glob("docs/*.md"))])
def test_commands_of_a_page_exist_with_their_options(page: str) -> None:
    for words in commands_in((REPOSITORY / page).read_text("utf-8")):
        command: Any = typer.main.get_command(app)
        rest = words[1:]
        while rest and hasattr(command, "commands"):
            if rest[0].startswith("-"):
                break
            if rest[0] not in command.commands and hasattr(command, "default_command"):
                rest = [command.default_command, *rest]
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.split("=")[0] for word in rest if word.startswith("-") and not word.lstrip("-").isdigit()}
        assert used <= known | {"--help", "--debug"}, (words, used - known)
