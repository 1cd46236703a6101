"""Studies on a Ray cluster: how it is divided, and the same runs as here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fromscratch.errors import UsageError
from fromscratch.runs.states import RunState
from fromscratch.studies.jobs import missing
from fromscratch.studies.ray_cluster import Share, share_of
from tests.command import run_command
from tests.small import write_run_file
from tests.studies.planted import NO_DROPOUT, open_folder, write_study


@pytest.mark.parametrize(
    ("nodes", "jobs", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 4.0}], None, Share(2, 0, 4)),
        ([{"CPU": 2.0}] * 4, 1, Share(1, 0, 2)),  # a run cannot use more cores than one node has
        ([{"CPU": 8.0}, {"CPU": 2.0}], 4, Share(4, 0, 1)),
        ([{"CPU": 0.0}, {}, {"CPU": 4.0}], None, Share(1, 0, 4)),  # a head that trains nothing
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}], None, Share(4, 1, 2)),  # cores of nodes without GPU are no use
        ([{"CPU": 2.0, "GPU": 4.0}], None, Share(4, 1, 0)),
    ],
)
def test_every_run_fits_on_a_node(nodes: list[dict[str, float]], jobs: int | None, expected: Share) -> None:
    assert share_of(nodes, jobs) == expected


def test_a_cluster_without_devices_is_refused() -> None:
    with pytest.raises(UsageError, match="no node of the Ray cluster has a GPU or a CPU"):
        share_of([{"CPU": 0.0}], None)


def run_on_ray(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ray_study.py")), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_two_nodes_make_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fromscratch[cluster]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = write_study(tmp_path, seeds=[1], interventions=NO_DROPOUT)
    answer = run_on_ray(file, tmp_path / "ray")
    assert answer["nodes"] == 2 and not answer["failed"]
    assert run_command("study", "run", file, "--runs-dir", tmp_path / "runs", "--device", "cpu", "-q").code == 0
    for job in open_folder(file).jobs():
        other = tmp_path / "ray" / "study" / job.name
        for name in ("model.safetensors", "optimizer.safetensors"):
            here = (job.run.checkpoints / "latest" / name).read_bytes()
            assert here == (other / "checkpoints" / "latest" / name).read_bytes(), (job.name, name)


def test_a_node_that_is_lost_fails_its_run_and_the_same_command_resumes_it(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fromscratch[cluster]'")
    file = write_study(tmp_path, seeds=[1], control_seeds=1, interventions=NO_DROPOUT)
    steps = {"data": {"tokens": 1_500 * 128, "epochs": 100}, "train": {"evaluate_every": 500, "checkpoint_every": 100}}
    write_run_file(tmp_path, "baseline", **steps)
    answer = run_on_ray(file, tmp_path / "runs", "lose")
    assert answer["failed"] and sum("failed with exit code 1" in line for line in answer["told"]) == 1, answer
    folder = open_folder(file)
    (lost,) = missing(folder)
    assert "the Ray task of this run failed" in (folder.path / "logs" / f"{lost.name}.log").read_text()
    assert not run_on_ray(file, tmp_path / "runs")["failed"]
    assert all(job.state == RunState.DONE for job in folder.jobs())
