"""The registry of noise: entries are arms by content, so that names cannot mix studies and no run counts twice."""

import json
from pathlib import Path

import pytest

from fromscratch.studies.jobs import StudyFolder
from fromscratch.studies.registry import borrowed_spread, lend, registry_path, setting_of
from tests.studies.planted import NO_DROPOUT, open_folder, write_study

CLIPPING = {"clipping": {"train": {"clip": {"kind": "norm", "max_norm": 0.1}}}}
BATCH = {"batch": {"train": {"global_batch": 4}}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))


def study(folder: Path, interventions: object, seeds: list[int]) -> StudyFolder:
    """A study named ``study``, like all others."""
    folder.mkdir()
    return open_folder(write_study(folder, interventions=interventions, seeds=seeds, control_seeds=len(seeds)))


def losses(folder: StudyFolder, step: float) -> dict[str, dict[int, float]]:
    return {arm.name: {seed: 3.0 + step * n for n, seed in enumerate(arm.seeds)} for arm in folder.study.all_arms}


def test_two_studies_of_one_name_have_entries_of_their_own_and_lend_to_each_other(tmp_path: Path) -> None:
    one, other = study(tmp_path / "a", NO_DROPOUT, [1, 2, 3]), study(tmp_path / "b", CLIPPING, [7, 8])
    assert setting_of(one.study) == setting_of(other.study) and one.study.name == other.study.name
    lend(one.study, losses(one, 0.01))
    lend(other.study, losses(other, 0.02))
    assert borrowed_spread(one.study).df == 2 and borrowed_spread(other.study).df == 4
    assert borrowed_spread(one.study).standard_deviation == pytest.approx(0.02 / 2**0.5)
    names = [entry["study"] for entry in json.loads(registry_path().read_text())[setting_of(one.study)].values()]
    assert names == ["study"] * 4


def test_a_run_that_two_studies_share_counts_once(tmp_path: Path) -> None:
    """The baseline with the same seeds is the same runs, whatever the study is called."""
    one, other = study(tmp_path / "a", NO_DROPOUT, [1, 2, 3]), study(tmp_path / "b", CLIPPING, [1, 2])
    third = study(tmp_path / "c", BATCH, [20, 21])
    lend(one.study, losses(one, 0.01))
    lend(other.study, losses(other, 0.01))
    assert borrowed_spread(other.study).df == 2, "without the baseline, whose runs it has itself"
    assert borrowed_spread(third.study).df == 2 + 2 + 1, "the longer baseline, and both arms"
    lend(one.study, losses(one, 0.01))
    assert borrowed_spread(third.study).df == 5, "lending again replaces"


def test_a_study_whose_seeds_grow_or_whose_arms_change_does_not_borrow_from_itself(tmp_path: Path) -> None:
    few, more = study(tmp_path / "a", NO_DROPOUT, [1, 2]), study(tmp_path / "b", {**NO_DROPOUT, **BATCH}, [1, 2, 3])
    lend(few.study, losses(few, 0.01))
    assert borrowed_spread(more.study) is None
    lend(more.study, losses(more, 0.01))
    lend(few.study, losses(few, 0.01))
    assert borrowed_spread(study(tmp_path / "c", CLIPPING, [20]).study).df == 6, "more seeds are kept"


def test_an_entry_of_an_earlier_version_is_read_and_replaced_by_its_own_study(tmp_path: Path) -> None:
    one, other = study(tmp_path / "a", NO_DROPOUT, [1, 2]), study(tmp_path / "b", NO_DROPOUT, [1, 2])
    other.path.parent.mkdir()
    old = {"variance": 0.0004, "df": 7, "paired": False, "measured": "2026-01-01"}
    registry_path().parent.mkdir(parents=True)
    registry_path().write_text(json.dumps({setting_of(one.study): {"another": old, "study": old, "broken": 3}}))
    assert borrowed_spread(one.study).df == 7, "of the other study alone"
    lend(one.study, losses(one, 0.01))
    kept = json.loads(registry_path().read_text())[setting_of(one.study)]
    assert "study" not in kept and kept["another"] == old and len(kept) == 4
