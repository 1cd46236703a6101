"""The guide docs/one-seed-lies.md says what its runs gave, and its program prints what it shows."""

import json
import re
from pathlib import Path

import pytest

from fromscratch.studies.definition import CONTROL, load_study
from fromscratch.studies.results import losses_after
from fromscratch.studies.verdicts import judge_study
from tests.conftest import REPOSITORY
from tests.studies.planted import NO_DROPOUT, finish, open_folder, write_study
from tests.test_examples import run_example

PAGE = REPOSITORY / "docs" / "one-seed-lies.md"
ARMS = ("same-again", "no-dropout")
ADDED = (52, 53, 54, 55)


def recorded() -> dict[str, dict[int, float | None]]:
    """Held-out losses of the guide's 48 runs, by arm and seed."""
    losses = json.loads(Path(__file__).with_name("one_seed_losses.json").read_text())
    study = load_study(REPOSITORY / "studies" / "one-seed" / "dropout.toml", added_seeds=ADDED)
    return {arm.name: dict(zip(arm.seeds, losses[arm.name], strict=True)) for arm in study.all_arms}


def test_the_table_is_what_the_runs_gave() -> None:
    rows = [
        line.strip("| \n").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if re.match(r"\| \d", line)
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 15))
    for seeds, *cells in rows:
        result = judge_study(losses_after(recorded(), int(seeds)), CONTROL, margin=0.0016)
        for place, name in enumerate(ARMS):
            arm = next(one for one in result.arms if one.arm == name)
            effect, evidence, verdict = (cell.strip("*") for cell in cells[3 * place : 3 * place + 3])
            assert verdict == arm.verdict, (seeds, name)
            assert effect == ("-" if arm.effect is None else f"{arm.effect:+.4f}"), (seeds, name)
            assert evidence == ("-" if arm.evidence is None else f"{1 / arm.evidence.p_different:.1f}"), (seeds, name)


def test_the_sentences_about_single_runs_hold() -> None:
    losses = {arm: [loss for loss in by_seed.values() if loss is not None] for arm, by_seed in recorded().items()}
    first, ninth = (losses["no-dropout"][n] - losses[CONTROL][n] for n in (0, 8))
    second = losses["same-again"][1] - losses[CONTROL][1]
    effect = judge_study(recorded(), CONTROL, margin=0.0016).arms[1].effect
    assert effect is not None
    pairs = [abs(one - other) > abs(effect) for one in losses["same-again"] for other in losses[CONTROL]]
    page = PAGE.read_text("utf-8")
    assert f"beats the first run of the baseline by {-first:.4f}" in page
    assert f"The ninth run loses by {ninth:.4f}" in page and f"by **{-second:.4f}**" in page
    assert f"in {sum(pairs) / len(pairs):.0%} of them" in page and len(losses[CONTROL]) == 20


def test_the_program_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    file = write_study(tmp_path, seeds=3, control_seeds=3, interventions=NO_DROPOUT)
    finish(open_folder(file), {CONTROL: [3.0, 3.01, 3.0], "no-dropout": [2.9, 2.91, 2.902]})
    run_example("one_seed.py", file, tmp_path / "runs", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["seeds", "arm", "effect", "1", "/", "p", "verdict"] and len(lines) == 4
    assert lines[1].split() == ["1", "no-dropout", "-", "-", "unknown"]
    assert lines[3].split()[:3] == ["3", "no-dropout", "-0.0993"]
