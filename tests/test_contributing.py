"""The worked examples of CONTRIBUTING.md, carried out to the letter on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.small import write_run_file

BLOCK = re.compile(r"```python\n# (?P<how>new file|in): (?P<path>src/\S+)\n(?P<code>.*?)```", re.DOTALL)
CHANGES = ['model.attention={kind="strided",stride=3}', 'train.optimizer={kind="signum",learning_rate=0.01}']
LOAD_WITH_TRANSFORMERS = """
import json, sys, torch, transformers
from fromscratch.formats.model_sources import open_model
from fromscratch.machine.hardware import find_hardware
tokens = torch.arange(5, 15)[None]
ours = open_model(sys.argv[1], find_hardware("cpu")).model
theirs = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True).eval()
with torch.inference_mode():
    print(json.dumps((ours(tokens) - theirs(tokens).logits).abs().max().item()))
"""


def follow(text: str, source: Path) -> None:
    """Does what the blocks of the page say: writes new files, adds classes, replaces a slot's union."""
    for block in BLOCK.finditer(text):
        path = source / Path(block["path"]).relative_to("src")
        if block["how"] == "new file":
            path.write_text(block["code"])
            continue
        union = block["code"].rstrip().splitlines()[-1]
        field = union.partition(":")[0]  # with its indentation
        present = path.read_text()
        (line,) = re.findall(rf"^{field}: Annotated.*$", present, re.MULTILINE)
        new_class = block["code"].rstrip().removesuffix(union).rstrip()
        table = re.findall(r"^class \w+Config\(", present, re.MULTILINE)[0]
        path.write_text(present.replace(line, union).replace(table, f"{new_class}\n\n\n{table}", 1))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with both examples added."""
    source = tmp_path_factory.mktemp("copy") / "src"
    shutil.copytree(REPOSITORY / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    follow((REPOSITORY / "CONTRIBUTING.md").read_text(), source)
    return source


def run(package: Path, folder: Path, *arguments: object) -> Any:
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(package.parent / "hf"),
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def fromscratch(package: Path, folder: Path, *arguments: object) -> str:
    done = run(package, folder, "-m", "fromscratch", *arguments)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_the_examples_train_generate_and_publish(package: Path, tmp_path: Path) -> None:
    file = write_run_file(tmp_path, train={"evaluate_every": 20, "checkpoint_every": 20})
    changes = [word for change in CHANGES for word in ("--set", change)]
    summary = json.loads(fromscratch(package, tmp_path, "train", file, *changes, "--device", "cpu", "--json", "-q"))
    assert summary["outcome"] == "done" and summary["final_loss"] < 5.0
    fromscratch(package, tmp_path, "generate", "small", "-p", "the cat", "--tokens", "24", "--device", "cpu")
    fromscratch(package, tmp_path, "publish", "small", "--to", "published")
    done = run(package, tmp_path, "-c", LOAD_WITH_TRANSFORMERS, "small", "published")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) < 1e-4
    wrong = run(package, tmp_path, "-m", "fromscratch", "train", file, "--set", "train.optimizer=signun")
    assert wrong.returncode == 2 and "did you mean 'signum'?" in wrong.stderr


def test_run_files_that_named_no_kind_stay_valid(package: Path, tmp_path: Path) -> None:
    """As they could while a slot had one kind."""
    script = (
        "from fromscratch.config.loading import parse_run_config\n"
        "values = {'data': {'store': 's'}, 'train': {'optimizer': {'eps': 1e-6}}}\n"
        "optimizer = parse_run_config(values, where='here').train.optimizer\n"
        "print(optimizer.kind, optimizer.eps)"
    )
    assert run(package, tmp_path, "-c", script).stdout.split() == ["adamw", "1e-06"]


def test_the_conformance_tests_cover_a_new_kind_at_once(package: Path) -> None:
    tests = REPOSITORY / "tests" / "models" / "test_conformance.py"
    done = run(
        package,
        REPOSITORY,
        "-m",
        "pytest",
        tests,
        "-k",
        "attention-strided",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 4
