"""Two machines: network namespaces with addresses of their own, or the loopback where those are refused."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from tests.processes import faulty
from tests.processes.forked import Command, Fork, agent
from tests.processes.test_distributed import TIMEOUT, free_port, losses
from tests.small import run_small, write_run_file


@dataclass(frozen=True)
class Machine:
    """Where a torchrun agent runs."""

    network: str
    address: str
    interface: str


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    names = [f"fromscratch{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"fs{os.getpid()}{letter}"[:15] for letter in "ab"]
    if shutil.which("ip") is None or not all(ip("netns", "add", name) for name in names):
        for name in names:
            ip("netns", "del", name) if shutil.which("ip") else None
        yield [Machine("", "127.0.0.1", "lo")] * 2
        return
    try:
        assert ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
            assert ip("link", "set", end, "netns", name)
            assert ip("-n", name, "address", "add", f"10.213.7.{number}/24", "dev", end)
            assert ip("-n", name, "link", "set", end, "up") and ip("-n", name, "link", "set", "lo", "up")
        yield [
            Machine(name, f"10.213.7.{number}", end)
            for number, name, end in zip(itertools.count(1), names, cable, strict=False)
        ]
    finally:
        for name in names:
            ip("netns", "del", name)


def start(machine: Machine, folder: Path, endpoint: str, *options: str, faults: str, is_host: bool) -> Fork:
    """A torchrun agent with one process, which meets the others at the endpoint."""
    torchrun = ["--nnodes=2", "--nproc-per-node=1", f"--rdzv-endpoint={endpoint}", "--rdzv-id=run"]
    torchrun += [f"--rdzv-conf=is_host={int(is_host)}", f"--local-addr={machine.address}", *options]
    environment = {**TIMEOUT, "FAULTS": faults, "GLOO_SOCKET_IFNAME": machine.interface}
    arguments = (torchrun, faulty.run, "train", "small.toml", "--device", "cpu")
    return Fork(Command(agent, arguments, folder, environment, machine.network))


@pytest.mark.timeout(240)
def test_two_machines_equal_one_process_and_restart_when_a_process_dies(
    tmp_path: Path, machines: list[Machine]
) -> None:
    """F16, F17: the process of the second machine is killed once; both start again from the checkpoint."""
    file = write_run_file(tmp_path)
    endpoint = f"{machines[0].address}:{free_port()}"
    faults = json.dumps([[0, 1, 7, "kill"]])
    agents = [
        start(machine, tmp_path, endpoint, "--max-restarts=1", faults=faults, is_host=place == 0)
        for place, machine in enumerate(machines)
    ]
    assert [one.wait(200) for one in agents] == [0, 0], "\n".join(one.stderr for one in agents)
    run = RunDirectory(tmp_path / "runs" / "small")
    assert [event["step"] for event in read_records(run.events) if event["event"] == "resumed"] == [5]
    alone, _ = run_small(file, name="alone")
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    facts = json.loads(run.machine.read_text())
    assert facts["world_size"] == 2
