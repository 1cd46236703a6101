"""How fast the dashboard's pages appear, and how much memory its server takes: ``python benchmarks/dashboard.py``.

Makes 200 runs, a study of 40 runs, and a run of 1,000,000 steps in a temporary folder. A headless Chromium opens each
page in a fresh browser context, first from a server that has just started, then again. The time is that of the first
contentful paint, which shows the key figures and tables, and of the first chart. At last a model of the size of GPT-2
small generates in the playground of a server that has shown all pages. ``--json`` prints JSON.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, sync_playwright

from fromscratch.config.model import GPTConfig
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.models.factory import build_empty, initialise
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import Event, RunState
from fromscratch.tokenizers.bytes import BytesTokenizer

NUM_RUNS, NUM_ARMS, NUM_SEEDS, LONG_STEPS = 200, 8, 5, 1_000_000
CONFIG = {"data": {"store": "store"}, "train": {"evaluate_every": 100}}
FIGURES = ("first_paint", "server_cpu", "browser_cpu", "first_chart", "all_steps")
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def write_run(path: Path, *, seed: int, num_steps: int, loss: float) -> None:
    """Writes a run that is done: metrics, evaluations, cost and status."""
    rng, run = random.Random(seed), RunDirectory(path)
    run.create()
    run.write_config({**CONFIG, "train": {"seed": seed}})
    with run.metrics.open("w") as file:
        for step in range(1, num_steps + 1):
            value = loss + 8 * math.exp(-20 * step / num_steps) + rng.gauss(0, 0.05)
            record = {
                **{"step": step, "tokens": 16_384 * step, "loss": value, "loss_min": value - 0.1},
                **{"loss_max": value + 0.1, "learning_rate": 6e-4 * (1 - step / num_steps)},
                **{"grad_norm": abs(rng.gauss(0.5, 0.2)), "clipped": False, "nonfinite": False, "outcome": "normal"},
                **{"tokens_per_second": rng.gauss(5e4, 500), "seconds": 0.33},
            }
            file.write(json.dumps(record) + "\n")
    with run.events.open("w") as file:
        for step in range(0, num_steps + 1, max(1, num_steps // 100)):
            held_out = loss + 8 * math.exp(-20 * step / num_steps) + rng.gauss(0, 0.005)
            event = {"event": Event.EVALUATION, "at": "2026-01-01T00:00:00+00:00", "step": step, "loss": held_out}
            file.write(json.dumps(event) + "\n")
    session = {
        **{"began_at": "2026-01-01T00:00:00+00:00", "device_name": "benchmark", "devices": 1, "first_step": 0},
        **{"last_step": num_steps, "seconds": {"training": 0.33 * num_steps}, "dollars_per_hour": 2.0},
    }
    run.cost.write_text(json.dumps({"sessions": [session]}))
    run.write_status(RunState.DONE, step=num_steps, num_steps=num_steps)


def write_model(path: Path) -> None:
    """Writes a model of the size of GPT-2 small with random weights."""
    config = GPTConfig(preset="gpt2-small", vocab_size=50_257)
    model = build_empty(config, "cpu")
    initialise(model, config, seed=0)
    write_model_folder(path, config, model, BytesTokenizer(), {})


def make_runs(folder: Path) -> None:
    """Writes everything that the pages show."""
    for number in range(NUM_RUNS):
        write_run(folder / f"run-{number:03}", seed=number, num_steps=200, loss=3.0)
    for arm in range(NUM_ARMS):
        name = "baseline" if arm == 0 else f"arm-{arm}"
        for seed in range(NUM_SEEDS):
            path = folder / "study" / f"{name}-seed-{seed}"
            write_run(path, seed=100 * arm + seed, num_steps=1_000, loss=3.0 - 0.02 * arm)
    write_run(folder / "long", seed=0, num_steps=LONG_STEPS, loss=3.0)


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """Starts the dashboard as a user would; yields its address and process number."""
    command = [sys.executable, "-m", "fromscratch", "dashboard", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = re.search(r"http://\S+", process.stderr.readline())
    assert found is not None
    try:
        yield found[0].rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(browser: Browser, address: str, chart: str | None, pid: int) -> dict[str, float]:
    """Opens a page in a fresh context; seconds to the first paint, the first chart and all of its steps.

    The processor time of the server and of the page's process in the browser until the first paint tell what a machine
    without other load takes.
    """
    context = browser.new_context()
    page = context.new_page()
    inspector = context.new_cdp_session(page)
    inspector.send("Performance.enable")
    began, before = time.perf_counter(), cpu_seconds(pid)
    page.goto(address, wait_until="commit")
    while (paint := page.evaluate(PAINT)) is None:
        page.wait_for_timeout(10)
    spent = {one["name"]: one["value"] for one in inspector.send("Performance.getMetrics")["metrics"]}
    served = cpu_seconds(pid) - before
    found = {"first_paint": paint / 1000, "server_cpu": served, "browser_cpu": spent["ProcessTime"]}
    if chart is not None:
        page.locator(f"#{chart} .plot canvas").wait_for()
        found["first_chart"] = time.perf_counter() - began
        page.get_by_text("reading all steps").first.wait_for(state="hidden", timeout=60_000)
        found["all_steps"] = time.perf_counter() - began
    context.close()
    return found


def memory_of(pid: int) -> int:
    """The highest resident memory of a process so far, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def generate(address: str, pid: int) -> dict[str, float]:
    """Generates in the playground; the highest memory of the server, and of the process that holds the model."""
    asked = {"kind": "continue", "model": "model", "text": "The cat", "max_tokens": 40}
    answer = httpx2.post(f"{address}/playground/ask", json=asked, headers={"Origin": address}, timeout=300)
    last = json.loads(answer.text.splitlines()[-1])
    assert "error" not in last, last
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {"memory_bytes": memory_of(pid), "model_process_bytes": memory_of(int(child))}


def benchmark() -> dict[str, Any]:
    """Measures all pages."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    pages = {
        "200 runs": ("/", None),
        "study of 40 runs": ("/studies/study", "chart-effects"),
        "run of 1,000,000 steps": ("/runs/long", "chart-loss"),
    }
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        make_runs(Path(name))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        results: dict[str, Any] = {}
        for title, (path, chart) in pages.items():
            with server(Path(name)) as (address, pid):
                cold = measure(browser, address + path, chart, pid)
                warm = measure(browser, address + path, chart, pid)
                results[title] = {"cold": cold, "warm": warm, "memory_bytes": memory_of(pid)}
        with server(Path(name)) as (address, pid):
            for path, chart in pages.values():
                measure(browser, address + path, chart, pid)
            results["all pages, one server"] = {"memory_bytes": memory_of(pid)}
            write_model(Path(name) / "model")
            results["and the playground"] = generate(address, pid)
        browser.close()
    return results


def main() -> None:
    """Prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    results = benchmark()
    if parser.parse_args().json:
        print(json.dumps(results, indent=1))
        return
    heads = "".join(f"{key.replace('_', ' '):>13}" for key in FIGURES)
    print(f"{'page':<32}{heads}{'memory':>10}")
    for title, found in results.items():
        for state in ("cold", "warm"):
            times = found.get(state, {})
            cells = [f"{times[key]:.2f} s" if key in times else "" for key in FIGURES]
            memory = f"{found['memory_bytes'] / 1e6:.0f} MB" if state == "cold" else ""
            print(f"{title:<26}{state:<6}{''.join(f'{cell:>13}' for cell in cells)}{memory:>10}")
    held = results["and the playground"]["model_process_bytes"] / 1e6
    print(f"the process of the playground, which holds the model: {held:.0f} MB")


if __name__ == "__main__":
    main()
