"""What fifty open pages of a live run cost: ``python benchmarks/dashboard_load.py``.

Trains a small model, and alternates between no open page and ``--pages`` of them. Each page is a client with
connections of its own that does what a browser does: it listens to the stream of changes, and fetches the page and its
charts after each. A round prints the processor time that the training took for a step, with and without open pages,
and the share of one core that the server took. Times are of processes, so other load on the machine matters less; the
last line has the medians over the rounds.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import tomli_w

from dashboard import cpu_seconds, memory_of, server
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.sources.base import InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer

CHARTS = ("loss", "gradient-norm", "learning-rate", "speed")
WARM_UP_SECONDS = 10.0
MODEL = {"context_length": 128, "num_layers": 4, "num_heads": 4, "embedding_dim": 128}


@dataclass
class Page:
    """One open page of a run."""

    address: str
    run: str
    updates: int = 0
    """How often its content was fetched after a change."""

    async def stay_open(self) -> None:
        """Fetches the page, and again after each change, until it is cancelled."""
        limits = httpx2.Limits(max_connections=6, keepalive_expiry=2.0)  # the server closes them after five seconds
        async with (
            httpx2.AsyncClient(base_url=self.address, limits=limits, timeout=None) as client,
            client.stream("GET", f"/live?of={self.run}") as changes,
        ):
            async for line in changes.aiter_lines():
                if line.startswith("data:"):
                    await self._fetch_all(client)
                    self.updates += 1

    async def _fetch_all(self, client: httpx2.AsyncClient) -> None:
        for path in (f"/runs/{self.run}", *(f"/chart/{chart}/{self.run}?full=1" for chart in CHARTS)):
            (await client.get(path)).raise_for_status()


@dataclass(frozen=True)
class Window:
    """What happened during some seconds."""

    seconds: float
    steps: int
    training_seconds: float
    """Of the processor, as is the server's."""
    server_seconds: float
    updates: int

    @property
    def milliseconds_per_step(self) -> float:
        """Processor time of the training for a step."""
        return 1000 * self.training_seconds / self.steps


def train(folder: Path, threads: int) -> tuple["subprocess.Popen[bytes]", Path]:
    """Starts a training that does not end by itself; returns its process and its metrics."""
    texts = tuple(f"the {number} cats see {number * number} dogs and a small house." for number in range(20_000))
    prepare_store([InMemory("sentences", texts)], BytesTokenizer(), folder / "store", rule=SplitRule(0.1))
    values = {
        "model": MODEL,
        "data": {"store": "store", "tokens": 10**9, "epochs": 10_000},
        "train": {"global_batch": 8, "evaluate_every": 0, "checkpoint_every": 10_000, "precision": "fp32"},
    }
    (folder / "run.toml").write_text(tomli_w.dumps(values))
    command = [sys.executable, "-m", "fromscratch", "train", str(folder / "run.toml"), "--name", "live"]
    command += ["--runs-dir", str(folder / "runs"), "--device", "cpu", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, cwd=folder, env=environment), folder / "runs" / "live" / "metrics.jsonl"


async def observe(seconds: float, training: int, dashboard: int, metrics: Path, pages: list[Page]) -> Window:
    """Measures for some seconds, with these pages open."""
    tasks = [asyncio.create_task(page.stay_open()) for page in pages]
    if tasks:
        await asyncio.sleep(seconds / 2)  # until all have been opened
    before = num_lines(metrics), cpu_seconds(training), cpu_seconds(dashboard), sum(page.updates for page in pages)
    began = time.monotonic()
    await asyncio.sleep(seconds)
    after = num_lines(metrics), cpu_seconds(training), cpu_seconds(dashboard), sum(page.updates for page in pages)
    passed = time.monotonic() - began
    for task in tasks:
        if task.done():
            task.result()  # raises what ended it
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    steps, trained, served, updates = (late - early for early, late in zip(before, after, strict=True))
    return Window(passed, int(steps), trained, served, int(updates))


def num_lines(path: Path) -> int:
    """Number of lines of a file."""
    return path.read_bytes().count(b"\n")


def compare(training: int, metrics: Path, num_pages: int, rounds: int, seconds: float) -> None:
    """Prints each round and the medians."""
    ratios, shares = [], []
    with server(metrics.parent.parent) as (address, pid):
        for number in range(rounds):
            windows = {}
            for is_open in (False, True) if number % 2 == 0 else (True, False):
                pages = [Page(address, "live") for _ in range(num_pages if is_open else 0)]
                windows[is_open] = asyncio.run(observe(seconds, training, pid, metrics, pages))
            without, opened = windows[False], windows[True]
            ratios.append(opened.milliseconds_per_step / without.milliseconds_per_step)
            shares.append(opened.server_seconds / opened.seconds)
            updates = opened.updates / num_pages / opened.seconds
            print(
                f"a step takes {without.milliseconds_per_step:.2f} ms, {opened.milliseconds_per_step:.2f} ms with "
                f"{num_pages} pages (ratio {ratios[-1]:.3f}); the server {shares[-1]:.1%} of a core; each page is "
                f"updated {updates:.2f} times a second",
                flush=True,
            )
        memory = memory_of(pid) / 1e6
    ratio, share = statistics.median(ratios), statistics.median(shares)
    print(f"medians: ratio {ratio:.3f}, server {share:.1%} of a core; memory of the server {memory:.0f} MB")


def benchmark(num_pages: int, rounds: int, seconds: float, threads: int) -> None:
    """Trains, and compares meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        training, metrics = train(Path(name), threads)
        try:
            while not metrics.exists() or num_lines(metrics) < 20:
                if training.poll() is not None:
                    raise RuntimeError("the training has ended")
                time.sleep(0.5)
            time.sleep(WARM_UP_SECONDS)
            compare(training.pid, metrics, num_pages, rounds, seconds)
        finally:
            training.kill()
            training.wait()


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    benchmark(arguments.pages, arguments.rounds, arguments.seconds, arguments.threads)


if __name__ == "__main__":
    main()
