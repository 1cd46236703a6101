"""The names and sizes by which a machine is recorded."""

import os
import platform
import re
from pathlib import Path

import pytest

from fromscratch.files import read_json_object
from fromscratch.machine.hardware import find_hardware, processor_kind
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from tests.small import run_small, write_run_file


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="reads what Linux says of its processor")
def test_a_processor_is_recorded_by_its_model_and_with_its_memory() -> None:
    cpu = find_hardware("cpu").to_dict()
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert cpu["device_name"] == (" ".join(models[0].split()) if models else processor_kind())
    total = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert total is not None and cpu["memory_bytes"] == int(total[1]) * 1024


def test_a_system_that_tells_no_model_is_named_by_the_kind_of_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _path: False)
    monkeypatch.setattr(platform, "system", lambda: "Another")
    monkeypatch.setattr(os, "sysconf", lambda name: int(name, 16))  # raises ValueError
    cpu = find_hardware("cpu")
    assert cpu.name == processor_kind() != "" and cpu.memory_bytes is None


def test_a_run_of_an_earlier_version_keeps_its_settings_of_this_processor(tmp_path: Path) -> None:
    """Earlier versions recorded the kind of the processor as its name."""
    file = write_run_file(tmp_path)
    run, _ = run_small(file, micro_batch=2, stop_after=3)
    placed = {}
    for name in (find_hardware("cpu").name, processor_kind(), "another processor"):
        run.write_machine({**read_json_object(run.machine), "device_name": name})
        placed[name] = place_run(plan_run(file), RunDirectory(run.path), MachineOptions("cpu")).micro_batch
    assert list(placed.values()) == [*([2] * (len(placed) - 1)), 8]
