"""What ships beside the code says what the code does."""

import re
from pathlib import Path

import pytest

from fromscratch.config.loading import load_run_config
from fromscratch.config.reference import reference
from tests.conftest import REPOSITORY

RUN_FILES = sorted((REPOSITORY / "studies").rglob("*.toml"))


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
