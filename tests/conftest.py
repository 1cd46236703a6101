"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FROMSCRATCH_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    """No test reaches for the network; those of a hub start a local one and say so themselves."""
    os.environ["HF_HUB_OFFLINE"] = "1"
