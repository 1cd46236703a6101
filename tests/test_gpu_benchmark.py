"""``benchmarks/gpu.py`` in its tiny form on a CPU: the first row of every part, and what the command writes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fromscratch.machine.hardware import find_hardware
from tests.conftest import REPOSITORY


@pytest.fixture(name="benchmark", scope="module")
def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", REPOSITORY / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kernels", "head", "attention", "training", "run"])
def test_every_part_measures(benchmark: ModuleType, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    assert part in benchmark.PARTS
    row = next(benchmark.PARTS[part](find_hardware("cpu"), True))
    assert row.pop("what") and not row.pop("error", None)
    assert row.pop("resume_is_bit_exact", True) is True
    assert row and all(value > 0 for value in row.values())


def test_the_command_writes_what_it_prints(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--device", "cpu", "--parts", "kernels", "--out", str(out)])
    benchmark.main()
    written, printed = json.loads(out.read_text("utf-8")), capsys.readouterr().out
    assert written["device"] == "cpu" and written["tiny"] is True
    assert [row["what"] in printed for row in written["rows"]] == [True] * 6
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--parts", "wheels"])
    with pytest.raises(SystemExit) as refused:
        benchmark.main()
    assert refused.value.code == 2 and "wheels" in capsys.readouterr().err
