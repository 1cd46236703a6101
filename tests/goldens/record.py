"""Records the goldens anew: ``python -m tests.goldens.record``.

Run it from the repository's root, and only when a change is meant to alter them; the change then says so.
"""

import contextlib
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.goldens.cases import (
    BATCHES,
    CURVES,
    DATA,
    RUN_FILES,
    STOPPED_AT,
    STOPPED_CURVE,
    STOPPED_RUN,
    STORE,
    WEIGHTS,
    batches_of,
    generate_texts,
    hash_weights,
    ids_in_store,
    prepare_store,
    resolve,
    resolve_baseline,
    this_machine,
    train,
    train_curve,
    write_run_file,
)


def record(folder: Path) -> None:
    """Writes every golden into an empty folder."""
    prepare_store(folder)
    record_stopped_run(folder)
    texts = generate_texts(folder / STOPPED_RUN)
    write(folder / "generated.json", {"machine": this_machine(), "texts": texts})
    write(folder / "store-ids.json", ids_in_store(folder / STORE))
    write(folder / "weights.json", {name: hash_weights(model) for name, model in WEIGHTS.items()})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(folder / STORE, work / STORE)
        shutil.copytree(folder / STOPPED_RUN, work / STOPPED_RUN, symlinks=True)
        curves = {case: train_curve(work, case) for case in CURVES}
        write(folder / "curves.json", {"machine": this_machine(), "curves": curves})
        write(folder / "batches.json", {case: batches_of(work, data) for case, data in BATCHES.items()})
        identities = {case: resolve(work, case) for case in RUN_FILES}
        with contextlib.chdir(work):
            identities["baseline"] = resolve_baseline(work)
        write(folder / "identities.json", identities)


def record_stopped_run(folder: Path) -> None:
    """A run directory with one checkpoint, stopped before its end; its charts are left out."""
    run_file = write_run_file(folder / "stopped.toml", CURVES[STOPPED_CURVE])
    answer = train(run_file, STOPPED_RUN, "--stop-after", STOPPED_AT)
    assert answer.code == 75, answer.err
    (folder / "runs" / STOPPED_RUN).rename(folder / STOPPED_RUN)
    (folder / "runs").rmdir()
    run_file.unlink()
    shutil.rmtree(folder / STOPPED_RUN / "charts", ignore_errors=True)
    machine = folder / STOPPED_RUN / "machine.json"
    facts = {**json.loads(machine.read_text("utf-8")), "system": platform.system()}  # no need to name the kernel
    facts.pop("stores")  # the folder of the recording
    machine.write_text(json.dumps(facts, indent=1), "utf-8")


def write(path: Path, content: Any) -> None:
    """Strict JSON: one line per innermost list or object, so that a difference can be read."""
    path.write_text(_lines(content) + "\n", "utf-8")


def _lines(value: Any, indent: str = "") -> str:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(one, dict | list) and one for one in inner):
        return json.dumps(value, allow_nan=False)
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(inner)
    begin, end = "{}" if isinstance(value, dict) else "[]"
    rows = (f"{indent} {name}{_lines(one, indent + ' ')}" for name, one in zip(names, inner, strict=True))
    return f"{begin}\n" + ",\n".join(rows) + f"\n{indent}{end}"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=DATA.parent) as made:
        folder = Path(made) / "data"
        folder.mkdir()
        record(folder)
        shutil.rmtree(DATA, ignore_errors=True)
        folder.rename(DATA)
    print(f"recorded {sum(path.stat().st_size for path in DATA.rglob('*') if path.is_file()):,} bytes in {DATA}")
