"""``whole:FILE``: one text file as one document."""

from pathlib import Path

import pytest

from fromscratch.errors import UsageError
from fromscratch.sources import open_source


def test_a_whole_file_is_one_document(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_bytes((b"a line\r\n\r\n" * 2_000) + "caf\u00e9".encode())
    source = open_source(f"whole:{text}")
    (part,) = source.parts()
    assert source.description == "whole:book.txt" and part.text_bytes == text.stat().st_size
    assert list(part.documents()) == [text.read_bytes().decode()]
    (divided,) = open_source(str(text)).parts()
    assert len(list(divided.documents())) == 3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.txt", None, "no such file"),
        ("rows.parquet", b"PAR1", "one document per row or line; leave out 'whole:'"),
        ("lines.jsonl", b'{"text": "a"}', "one document per row or line; leave out 'whole:'"),
        ("list.json", b'["a"]', "a JSON file"),
    ],
)
def test_what_is_no_whole_text_is_refused(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        open_source(f"whole:{tmp_path / name}").parts()


def test_a_whole_file_longer_than_a_document_may_be_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate((64 << 20) + 1)  # a hole, which takes no space
    with pytest.raises(UsageError, match="a document at most 67,108,864; leave out 'whole:'"):
        open_source(f"whole:{tmp_path / 'long.txt'}").parts()
