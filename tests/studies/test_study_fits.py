"""``fromscratch study fit``: what it reads, what it leaves out, what it prints and draws."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fromscratch.config.loading import load_run_file
from fromscratch.models.costs import model_costs
from fromscratch.runs.charts import PNG_SIGNATURE
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import RunState
from fromscratch.studies.jobs import StudyFolder
from tests.command import refused, run_command
from tests.small import run_small, write_run_file
from tests.studies.planted import VOCABULARY, finish, open_folder, write_study


def write_table(path: Path, head: str, *rows: tuple[object, ...]) -> Path:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def fitted(*arguments: object) -> dict[str, Any]:
    answer = run_command("study", "fit", *arguments, "--json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


def parabola(batch: float) -> float:
    return 3.0 + 0.02 * math.log(batch / 8) ** 2


def plant(folder: StudyFolder, losses: dict[str, float]) -> None:
    """Ends the runs of some arms with these losses."""
    finish(folder, {arm: [loss] * 9 for arm, loss in losses.items()})


def test_the_best_batch_of_a_study_leaves_out_arms_that_change_something_else(tmp_path: Path) -> None:
    batches = {f"batch-{size}": size for size in (2, 4, 16, 32)}
    arms = {name: {"train": {"global_batch": size}} for name, size in batches.items()}
    other = {"both": {"train": {"global_batch": 2}, "model": {"dropout": 0.0}}, "late": {"train": {"global_batch": 64}}}
    file = write_study(tmp_path, interventions={**arms, **other})
    folder = open_folder(file)
    plant(folder, {"baseline": 3.0, "both": 9.0, **{name: parabola(size) for name, size in batches.items()}})
    job = folder.job(folder.study.arms[-1], 1)
    job.run.create()
    job.run.write_status(RunState.STOPPED, step=3, num_steps=20)
    job.run.write_config({"train": {"global_batch": 64}})
    picture = tmp_path / "batch.png"
    found = fitted("batch", file, "--runs-dir", tmp_path / "runs", "--picture", picture, "--at", "batch=128")
    best = found["parameters"]["best"]
    assert [best["value"], best["low"], best["high"]] == pytest.approx([8, 8, 8], rel=1e-4)
    assert sorted({row["batch"] for row in found["data"]}) == [2, 4, 8, 16, 32] and len(found["data"]) == 10
    assert found["predictions"][0]["value"] == pytest.approx(parabola(128))
    assert any("arm both left out: it changes model.dropout" in line for line in found["warnings"])
    assert any("run late-seed-1 left out: it is stopped" in line for line in found["warnings"])
    assert "batch = 128 is outside the data (2 to 32)" in found["warnings"][-1]
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    spoken = run_command("study", "fit", "batch", file, "--runs-dir", tmp_path / "runs")
    assert "ln batch - ln 8)^2" in spoken.out and re.search(r"batch-2-seed-1 +2 ", spoken.out)
    assert "warning: " in spoken.err and "--picture FILE" in spoken.err


def test_runs_that_differ_in_more_than_the_fit_is_about_are_named(tmp_path: Path) -> None:
    sizes = {f"batch-{size}": size for size in (2, 4, 16)}
    arms: dict[str, Any] = {name: {"train": {"global_batch": size}} for name, size in sizes.items()}
    arms["faster"] = {"train": {"global_batch": 32, "optimizer": {"learning_rate": 0.02}}}
    folder = open_folder(write_study(tmp_path, seeds=[1], control_seeds=1, interventions=arms))
    plant(folder, {"baseline": 3.0, "faster": parabola(32), **{name: parabola(size) for name, size in sizes.items()}})
    found = fitted("batch", *(job.run.path for job in folder.jobs()))
    assert len(found["data"]) == 5 and "differ in train.optimizer.learning_rate as well" in found["warnings"][0]


def test_scaling_counts_tokens_and_parameters_of_runs(tmp_path: Path) -> None:
    arms = {
        f"w{width}-t{tokens}": {"model": {"embedding_dim": width}, "data": {"tokens": tokens}}
        for width in (8, 16, 64)
        for tokens in (1280, 2560, 10240)
        if (width, tokens) != (16, 2560)
    }
    file = write_study(tmp_path, seeds=[1], control_seeds=1, interventions=arms)
    folder = open_folder(file)
    truth = {}
    for arm in folder.study.all_arms:
        config = load_run_file(folder.study.baseline, [*arm.overrides, f"model.vocab_size={VOCABULARY}"]).config
        assert isinstance(config.data.tokens, int)
        parameters = model_costs(config.model).parameters
        truth[arm.name] = (parameters, 1.5 + (parameters / 2e4) ** -0.5 + (config.data.tokens / 3e3) ** -0.3)
    plant(folder, {name: loss for name, (_, loss) in truth.items()})
    for job in folder.jobs():  # the steps that these tokens take
        tokens = load_run_file(folder.study.baseline, list(job.arm.overrides)).config.data.tokens
        assert isinstance(tokens, int)
        end(job.run, tokens // 128, truth[job.arm.name][1])
    found = fitted("scaling", file, "--runs-dir", tmp_path / "runs", "--picture", tmp_path / "s.png")
    estimates = {name: one["value"] for name, one in found["parameters"].items()}
    assert estimates["E"] == pytest.approx(1.5, rel=0.02)
    assert estimates["parameters_exponent"] == pytest.approx(0.5, rel=0.02)
    assert estimates["tokens_exponent"] == pytest.approx(0.3, rel=0.05)
    assert {row["parameters"] for row in found["data"]} == {parameters for parameters, _ in truth.values()}


def end(run: RunDirectory, num_steps: int, loss: float) -> None:
    """Ends a planted run at another step."""
    run.log_event("evaluation", step=num_steps, loss=loss)  # type: ignore[arg-type]
    run.write_status(RunState.DONE, step=num_steps, num_steps=num_steps)


def test_a_column_that_is_constant_is_left_out_and_said_so(tmp_path: Path) -> None:
    rows = [(tokens, 5e6, 2 + (tokens / 1e9) ** -0.3) for tokens in (1e8, 3e8, 1e9, 3e9, 1e10)]
    file = write_table(tmp_path / "losses.csv", "tokens,parameters,loss", *rows)
    found = fitted("scaling", file)
    assert "parameters" not in found["data"][0] and "parameters is the same in all rows" in found["warnings"][0]
    assert found["parameters"]["tokens_exponent"]["value"] == pytest.approx(0.3, rel=1e-3)
    only = write_table(tmp_path / "only.csv", "loss,tokens", *((loss, tokens) for tokens, _, loss in rows))
    assert fitted("scaling", only)["formula"] == found["formula"]


def test_memory_reads_what_fit_and_bench_print(tmp_path: Path) -> None:
    probes: list[dict[str, Any]] = [
        {"micro_batch": size, "fits": True, "peak_memory_bytes": 100 + 7 * size} for size in (1, 4, 16)
    ]
    probes.append({"micro_batch": 64, "fits": False, "peak_memory_bytes": None})
    (tmp_path / "fit.json").write_text(json.dumps({"probes": probes}))
    found = fitted("memory", tmp_path / "fit.json", "--picture", tmp_path / "memory.png")
    values = [found["parameters"][name]["value"] for name in ("intercept", "slope")]
    assert values == pytest.approx([100, 7]) and "1 of 4 rows left out: memory ran out" in found["warnings"][0]
    way = {"recipe": "engine", "precision": "fp32", "compile": False}
    rows = [{**way, "micro_batch": size, "peak_memory_bytes": 200 + 5 * size} for size in (1, 2, 4)]
    rows.append({**way, "compile": True, "micro_batch": 4, "peak_memory_bytes": 9999})
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows}))
    found = fitted("memory", tmp_path / "bench.json", "--at", "micro_batch=3")
    assert found["predictions"][0]["value"] == pytest.approx(215) and found["predictions"][0]["warning"] is None
    assert "1 rows left out: engine, fp32, compiled" in found["warnings"][0]


def test_noise_of_a_model_is_measured_at_its_weights(tmp_path: Path) -> None:
    run, _ = run_small(write_run_file(tmp_path))
    words = ("noise", run.path, "--store", tmp_path / "store", "--device", "cpu", "--repeats", 4, "--large", 16)
    found = fitted(*words, "--small", 1, "--picture", tmp_path / "noise.png", "-q")
    assert [row["batch"] for row in found["data"]] == [1] * 16 + [16] * 4
    critical = found["parameters"]["critical"]
    assert 0 < critical["low"] < critical["value"] < critical["high"]
    assert fitted(*words, "--small", 1)["data"] == found["data"]  # the same sequences, and no weight has changed
    file = write_table(
        tmp_path / "norms.csv", "squared_norm,batch", *((r["squared norm"], r["batch"]) for r in found["data"])
    )
    assert fitted("noise", file)["parameters"] == found["parameters"]
    refused("study", "fit", *words, "--large", 9999, "-q", code=3, says="take smaller or fewer batches")


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("batch", "batch,error\n1,2\n", "has no column loss; it has batch, error"),
        ("batch", "batch,loss\n1,2\n2,\n", "line 3: loss = '' is not a number"),
        ("batch", "batch,loss\n1,2\n2,nan\n4,1\n8,2\n16,3\n", "leave out runs that diverged"),
        ("batch", "batch,loss\n1,2\n", "more than 3"),
        ("batch", "", "has no column batch, loss; it has none"),
        ("scaling", "size,loss\n1,2\n", "need a column tokens or parameters in common"),
        ("noise", "batch,squared_norm\n1,2\n", "needs two batch sizes"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_refused(tmp_path: Path, kind: str, text: str, says: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    refused("study", "fit", kind, tmp_path / "table.csv", code=2, says=says)


def test_other_bad_input_is_refused(tmp_path: Path) -> None:
    good = write_table(tmp_path / "good.csv", "batch,loss", *((size, parabola(size)) for size in (2, 4, 8, 16, 32)))
    refused("study", "fit", "batch", good, "--at", "batch", code=2, says="write NAME=NUMBER")
    refused("study", "fit", "batch", good, "--at", "tokens=3", code=2, says="give batch")
    refused("study", "fit", "batch", tmp_path / "none.csv", code=2, says="cannot be read as CSV")
    refused("study", "fit", "batch", "no-such-run", code=2, says="no such run")
    refused("study", "fit", "memory", "some-run", code=2, says="give a CSV file, or the JSON of")
    (tmp_path / "x.json").write_text("[1]")
    refused("study", "fit", "memory", tmp_path / "x.json", code=2, says="only 'study fit memory' reads JSON")
    (tmp_path / "mine.png").write_text("mine")
    answer = run_command("study", "fit", "batch", good, "--picture", tmp_path / "mine.png")
    assert answer.code == 2 and (tmp_path / "mine.png").read_text() == "mine"
