"""The seam of model kinds: a second kind in a run file trains, carries its state, resumes, generates and is counted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fromscratch.config.loading import parse_run_config
from fromscratch.config.model import GPTConfig
from fromscratch.config.reference import reference
from fromscratch.config.run import RunConfig, parse_model
from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.generation.decoders import CachedDecoder, PlainDecoder
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.costs import model_costs
from fromscratch.models.factory import build_empty, initialise
from fromscratch.publishing.export import choose_format
from fromscratch.session.disk import plan_disk
from fromscratch.session.plan import plan_run
from tests.kinds import registered
from tests.models.toy_recurrent import ToyRecurrent, ToyRecurrentConfig
from tests.small import run_small, write_run_file
from tests.training.test_resume import assert_same_end


@pytest.fixture(scope="module", autouse=True)
def toy_kind() -> Iterator[None]:
    with registered(RunConfig, "model", ToyRecurrentConfig):
        yield


def run_file(folder: Path) -> Path:
    file = write_run_file(folder, train={"evaluate_every": 5, "checkpoint_every": 5, "sample_every": 10})
    text = file.read_text()
    begin, end = text.index("[model]"), text.index("[data]")
    file.write_text(
        f'{text[:begin]}[model]\nkind = "toy-recurrent"\ncontext_length = 16\nhidden_dim = 12\n\n{text[end:]}'
    )
    return file


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    _, summary = run_small(run_file(folder), name="untouched")
    assert summary.outcome == "done"
    return folder


def test_a_model_without_kind_is_a_gpt() -> None:
    assert isinstance(parse_model({"num_layers": 2}), GPTConfig)
    assert isinstance(parse_model({"kind": "toy-recurrent"}), ToyRecurrentConfig)
    with pytest.raises(ValueError, match="num_layers"):
        parse_model({"kind": "toy-recurrent", "num_layers": 2})


@pytest.mark.parametrize("step", [5, 8])
def test_f10_it_resumes_with_its_carry_to_the_bit(untouched: Path, step: int) -> None:
    file = untouched / "small.toml"
    run_small(file, name=f"stopped-{step}", stop_after=step)
    resumed, summary = run_small(file, name=f"stopped-{step}")
    whole = untouched / "runs" / "untouched"
    assert summary.outcome == "done"
    assert_same_end(resumed, type(resumed)(whole))
    carries = [read_tensors(path / "checkpoints" / "latest" / "carry.safetensors") for path in (resumed.path, whole)]
    assert carries[0]["hidden"].shape == (8, 12) and torch.equal(carries[0]["hidden"], carries[1]["hidden"])
    assert bool(carries[0]["hidden"].any())


def test_the_micro_batch_changes_nothing(untouched: Path) -> None:
    divided, _ = run_small(untouched / "small.toml", name="divided", micro_batch=2)
    whole = read_tensors(untouched / "runs" / "untouched" / "checkpoints" / "latest" / "model.safetensors")
    for name, tensor in read_tensors(divided.checkpoints / "latest" / "model.safetensors").items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-5, rtol=1e-4)


def test_its_size_on_the_disk_is_foreseen(untouched: Path) -> None:
    plan = plan_run(untouched / "small.toml")
    foreseen = plan_disk(plan, untouched / "runs" / "new").checkpoint_bytes
    folder = untouched / "runs" / "untouched" / "checkpoints" / "step-00000020"
    assert foreseen == pytest.approx(sum(path.stat().st_size for path in folder.iterdir()), abs=2_000)


def test_it_opens_and_generates_with_and_without_its_memory(untouched: Path) -> None:
    loaded = open_model(str(untouched / "runs" / "untouched"), find_hardware("cpu"))
    assert isinstance(loaded.model, ToyRecurrent) and isinstance(loaded.config, ToyRecurrentConfig)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [200, 100]]
    found = [
        list(
            generate_batch(
                loaded.model,
                prompts,
                Settings(30, Sampling(temperature=0.0)),  # beyond the training context of 16
                end_of_text=256,
                decoder=decoder,
            )
        )
        for decoder in (CachedDecoder, PlainDecoder)
    ]
    assert found[0] == found[1] and len(found[0]) > 10


def test_it_is_counted_by_its_own_layers() -> None:
    costs = model_costs(ToyRecurrentConfig(vocab_size=50, hidden_dim=8))
    assert costs.parameters == 50 * 8 + (16 * 8 + 8) + (8 * 50 + 50)
    assert costs.forward_flops_per_token == 2 * (16 * 8 + 8 * 50)


def test_its_weights_come_from_the_seed() -> None:
    config = ToyRecurrentConfig(vocab_size=50)
    models = [build_empty(config, "cpu") for _ in range(2)]
    for model in models:
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
        initialise(model, config, seed=3)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other) and bool(torch.isfinite(one).all())


def test_the_reference_page_and_errors_know_it() -> None:
    page = reference()
    assert "## [model], kind = gpt" in page and "## [model], kind = toy-recurrent" in page
    assert "| `hidden_dim` | whole number | `16` | Width of embedding and hidden state. |" in page
    with pytest.raises(UsageError, match=r"model\.kind = \"toy-recurent\": unknown kind.*did you mean 'toy-recurrent'"):
        parse_run_config({"model": {"kind": "toy-recurent"}, "data": {"store": "s"}}, where="here")
    with pytest.raises(UsageError, match=r"model\.num_heads: unknown key"):
        parse_run_config({"model": {"kind": "toy-recurrent", "num_heads": 2}, "data": {"store": "s"}}, where="here")


def test_what_it_cannot_do_is_said(untouched: Path) -> None:
    with pytest.raises(UsageError, match="kind 'toy-recurrent' cannot be published yet"):
        choose_format(ToyRecurrentConfig(), None)
    with pytest.raises(UsageError, match="--activation-checkpointing: ToyRecurrent"):
        run_small(untouched / "small.toml", name="x", machine={"activation_checkpointing": True})
