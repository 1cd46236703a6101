"""Settings that hold for all tests, and fixtures that every test may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

from fromscratch.runs.charts import draw_charts

REPOSITORY = Path(__file__).resolve().parents[1]

# No test reaches for the network; those of a hub start a local one, in processes of their own, and say so.
# Set before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

# Generated tests draw the same examples every time and have no deadline; ``--hypothesis-profile explore`` draws new
# ones. The literals of imported modules are left out: which modules are imported depends on the tests run before.
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False)
settings.load_profile("ci")
pytest.MonkeyPatch().setattr(providers, "is_local_module_file", lambda _path: False)


def pytest_runtest_setup() -> None:
    """Seeds torch's global generator before each test: what it draws does not depend on the tests before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FROMSCRATCH_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_charts() -> Iterator[None]:
    """Trainings in this process draw no charts: three of them take twice as long as a small run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fromscratch.session.run.draw_charts", lambda *_, **__: [])
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure on this machine is not remembered in the user's data folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROMSCRATCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables have any width, as in a pipe: pytest-xdist sets the width of its own output in the environment."""
    monkeypatch.delenv("COLUMNS", raising=False)


@contextmanager
def drawn_charts() -> Iterator[None]:
    """Trainings in this block draw their charts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fromscratch.session.run.draw_charts", draw_charts)
        yield


@pytest.fixture
def charts() -> Iterator[None]:
    """Trainings of this test draw their charts."""
    with drawn_charts():
        yield
