"""Divides labelled texts into a half without classes and a half with them: ``python halves.py FILE FOLDER``.

FILE has a first line, and then a class, a tab and a text per line. Every other text, without its class, is written to
``messages.jsonl``, for a language model to read; the rest to ``labelled.tsv``. A text of the second half is not in the
first.
"""

import json
import sys
from pathlib import Path

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
header, *lines = source.read_text("utf-8").rstrip("\n").split("\n")
texts = [line.split("\t", 1)[1] for line in lines]
labelled, known = lines[1::2], set(texts[1::2])
messages = [text for text in texts[::2] if text not in known]
(folder / "labelled.tsv").write_text("\n".join([header, *labelled, ""]), "utf-8")
(folder / "messages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in messages), "utf-8")
print(f"{len(messages):,} texts without classes, {len(labelled):,} with them")
