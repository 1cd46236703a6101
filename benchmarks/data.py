"""Measures speed and memory of ``data prepare``, compared with tiktoken on the same text.

Both use the same number of processes and run in turns, so that other load on the machine slows both.
The times exclude start-up (processes, imports, tokenizer). tiktoken has its texts in memory and discards
its tokens; ``prepare`` reads parquet, splits, and writes, flushes and checks its shards.

The GPT-2 vocabulary is taken from the folder that FROMSCRATCH_GPT2_VOCABULARY names (encoder.json and
vocab.bpe, or tokenizer.json), else from tiktoken's cache, else from the Hub.

    python benchmarks/data.py FILE.parquet... --processes 2 --repeats 5 --times 28 --words 20 --json out.json
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fromscratch.data.documents import SplitRule
from fromscratch.data.engines import WorkerProcesses
from fromscratch.data.prepare import PreparationObserver, prepare_store
from fromscratch.sources import Files
from fromscratch.tokenizers.gpt2 import load_gpt2
from fromscratch.tokenizers.loading import load

SECONDS_BETWEEN_SAMPLES = 0.05


class Stopwatch(PreparationObserver):
    """Records when the workers are ready."""

    def begin(self, *, total_bytes: int, done_bytes: int) -> None:
        self.began_at = time.perf_counter()


def time_prepare(files: list[Path], processes: int) -> tuple[float, int]:
    """Returns the seconds from ready workers to the finished store, and the bytes of text."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        store = prepare_store(
            [Files(path) for path in files],
            load_gpt2(),
            Path(folder, "store"),
            rule=SplitRule(0.01),
            engine=WorkerProcesses(processes, load),
            observer=watch,
        )
        seconds = time.perf_counter() - watch.began_at
        return seconds, sum(split.bytes or 0 for split in store.manifest.splits.values())


def time_tiktoken(files: list[Path], processes: int) -> float:
    """Returns the seconds in which the processes encode all documents."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(processes)]
    workers = [
        context.Process(target=encode_documents, args=(there, files, number, processes))
        for number, (_, there) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    for here, _ in pipes:
        here.recv()
    began_at = time.perf_counter()
    for here, _ in pipes:
        here.send("go")
    for here, _ in pipes:
        here.recv()
    seconds = time.perf_counter() - began_at
    for worker in workers:
        worker.join()
    return seconds


def encode_documents(connection: Connection, files: list[Path], number: int, processes: int) -> None:
    """Encodes every n-th document with tiktoken, in a worker process."""
    texts = [t for f in files for t in pq.read_table(f, columns=["text"]).column(0).to_pylist() if t][number::processes]
    engine = load_gpt2()._engine
    engine.encode_ordinary("ready")
    connection.send("ready")
    connection.recv()
    for text in texts:
        engine.encode_ordinary(text)
    connection.send("done")


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Samples the memory of this process and its descendants (proportional set size) during the block."""
    samples, stop = [tree_memory_bytes()], threading.Event()

    def sample() -> None:
        while not stop.wait(SECONDS_BETWEEN_SAMPLES):
            samples.append(tree_memory_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def tree_memory_bytes() -> int:
    """Sums the proportional set sizes of this process and its descendants (Linux)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    tree = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(map(_memory_bytes, tree))


def _memory_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def larger(files: list[Path], times: int, folder: Path) -> list[Path]:
    """Copies the files the given number of times."""
    copies = [folder / f"{number:03}-{path.name}" for number in range(times) for path in files]
    for copy in copies:
        shutil.copyfile(next(path for path in files if copy.name.endswith(path.name)), copy)
    return copies


def one_large_file(files: list[Path], times: int, folder: Path) -> list[Path]:
    """Writes the documents the given number of times into one file with large row groups."""
    table = pa.concat_tables([pq.read_table(path, columns=["text"]) for path in files])
    path = folder / "large.parquet"
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(times):
            writer.write_table(table, row_group_size=len(table))
    return [path]


def random_words(million: int, distinct: int, folder: Path) -> list[Path]:
    """Writes documents of 1,000 words each, drawn from ``distinct`` words of eight random letters."""
    generator = np.random.default_rng(0)
    path = folder / "words.parquet"
    alphabet = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
    known = alphabet[generator.integers(26, size=(distinct, 8))] if distinct < 1_000_000 else None
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(million):
            words = np.full((1_000_000, 9), ord(" "), dtype=np.uint8)
            drawn = generator.integers(26, size=(1_000_000, 8)) if known is None else None
            words[:, :8] = alphabet[drawn] if drawn is not None else known[generator.integers(distinct, size=1_000_000)]  # type: ignore[index]
            texts = [words[first : first + 1_000].tobytes().decode() for first in range(0, 1_000_000, 1_000)]
            writer.write_table(pa.table({"text": texts}, schema=schema))
    return [path]


def peak_memory(files: list[Path], processes: int) -> dict[str, float]:
    """Measures the peak memory of a preparation, over all processes."""
    with sampled_memory() as samples:
        before = samples[0]
        seconds, text_bytes = time_prepare(files, processes)
    return {"bytes": text_bytes, "seconds": seconds, "peak_memory_bytes": max(samples), "before_bytes": before}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--larger", type=int, default=20, help="Factor of the larger input for the memory test; 1 skips it."
    )
    parser.add_argument("--times", type=int, default=1, help="Copies of the input that are timed.")
    parser.add_argument("--words", type=int, default=0, help="Millions of distinct words for the memory test.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load_gpt2()  # fails here if the vocabulary is missing, not in a worker process
    seconds: dict[str, list[float]] = {"tiktoken": [], "prepare": []}
    with tempfile.TemporaryDirectory() as folder:
        timed = larger(options.files, options.times, Path(folder))
        for _ in range(options.repeats):
            seconds["tiktoken"].append(time_tiktoken(timed, options.processes))
            taken, text_bytes = time_prepare(timed, options.processes)
            seconds["prepare"].append(taken)
    speeds = {name: [text_bytes / s / 1e6 for s in taken] for name, taken in seconds.items()}
    ratios = [p / t for p, t in zip(speeds["prepare"], speeds["tiktoken"], strict=True)]
    memory = {"1x": peak_memory(options.files, options.processes)}
    if options.larger > 1:
        with tempfile.TemporaryDirectory() as folder:
            copies = larger(options.files, options.larger, Path(folder))
            memory[f"{options.larger}x, files"] = peak_memory(copies, options.processes)
        with tempfile.TemporaryDirectory() as folder:
            large = one_large_file(options.files, options.larger, Path(folder))
            memory[f"{options.larger}x, one file"] = peak_memory(large, options.processes)
    for distinct in (1_000, options.words * 1_000_000) if options.words else ():
        with tempfile.TemporaryDirectory() as folder:
            words = random_words(options.words, distinct, Path(folder))
            memory[f"{distinct:,} words"] = peak_memory(words, options.processes)
    report(options, text_bytes, speeds, ratios, memory)


def report(
    options: argparse.Namespace,
    text_bytes: int,
    speeds: dict[str, list[float]],
    ratios: list[float],
    memory: dict[str, Any],
) -> None:
    """Prints the table; writes the JSON file if requested."""
    print(f"{text_bytes / 1e6:.1f} MB of text, {options.processes} processes, {options.repeats} rounds")
    print(f"{'MB/s':<16} median     lowest    highest")
    for name, found in speeds.items():
        print(f"{name:<16} {statistics.median(found):6.1f}     {min(found):6.1f}     {max(found):6.1f}")
    print(f"{'prepare/tiktoken':<16} {statistics.median(ratios):6.2f}     {min(ratios):6.2f}     {max(ratios):6.2f}")
    print("\nprepare, input     text MB   MB/s   peak memory of all processes, MB")
    for name, result in memory.items():
        speed = result["bytes"] / result["seconds"] / 1e6
        peak = result["peak_memory_bytes"] / 1e6
        print(f"{name:<16} {result['bytes'] / 1e6:9.0f} {speed:6.1f}   {peak:8.0f}")
    if options.json:
        result = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "text_bytes": text_bytes}
        result |= {"processes": options.processes, "mb_per_second": speeds, "ratios": ratios, "memory": memory}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
