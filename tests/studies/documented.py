"""Reads the tables of docs/statistics.md, so that tests can hold them to what is computed."""

import re

from tests.conftest import REPOSITORY


def documented(title: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/statistics.md."""
    page = (REPOSITORY / "docs" / "statistics.md").read_text("utf-8")
    (section,) = re.findall(rf"## {re.escape(title)}\n(.*?)(?=\n## |\Z)", page, flags=re.DOTALL)
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
