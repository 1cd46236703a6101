"""What is published works with the libraries that people train and measure with: the examples of docs/models.md."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.publishing.models import publish

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("default"),  # theirs, not ours
    pytest.mark.parametrize("format_name", ["native", "custom"]),
]
SHAPE = {"context_length": 128, "tied_head": False, "attention_bias": False, "dropout": 0.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: publish(tmp_path_factory.mktemp(name), name, **SHAPE, init={"kind": "gpt2", "std": 0.02})[1]
        for name in ("native", "custom")
    }


@pytest.fixture(scope="module")
def records(shared_data: Path) -> list[dict[str, Any]]:
    """Short ones of the preference data, which also hold an instruction and an answer."""
    found = json.loads((shared_data / "instructions" / "instruction-data-with-preference.json").read_text())
    return [r for r in found if len(r["instruction"]) + len(r["input"]) < 60 and len(r["chosen"]) < 40][:24]


def load(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_pipeline(folders: dict[str, Path], format_name: str) -> None:
    speak = transformers.pipeline("text-generation", model=str(folders[format_name]), trust_remote_code=True)
    for result in speak(["Every effort", "a"], max_new_tokens=6, batch_size=2):
        assert result[0]["generated_text"].startswith(("Every effort", "a"))


def settings(kind: Any, folder: Path, **more: Any) -> Any:
    shared = {"output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 1, "save_strategy": "no"}
    return kind(**shared, learning_rate=3e-3, logging_steps=1, report_to="none", use_cpu=True, **more)


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(math.isfinite(loss) for loss in losses)
    return losses


def test_trainer_for_one_epoch(folders: dict[str, Path], tmp_path: Path, format_name: str) -> None:
    pytest.importorskip("accelerate", reason="the extra 'hf' is not installed")
    model, tokenizer = load(folders[format_name])
    texts = ["the cat sees the small red house. " * 3] * 64
    rows = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts)["input_ids"]]
    trainer = transformers.Trainer(
        model=model,
        args=settings(transformers.TrainingArguments, tmp_path),
        train_dataset=rows,
        data_collator=transformers.default_data_collator,
    )
    losses = losses_of(trainer)
    assert losses[-1] < losses[0] - 1.0


def test_lora(folders: dict[str, Path], tmp_path: Path, format_name: str) -> None:
    peft = pytest.importorskip("peft", reason="the extra 'hf' is not installed")
    model, tokenizer = load(folders[format_name])
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 0 < trained < 0.5 * sum(p.numel() for p in adapted.parameters())
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    adapted(ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters())
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(folders[format_name])[0], tmp_path / "adapter")
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(ids).logits, adapted.eval()(ids).logits)


def test_supervised_finetuning(
    folders: dict[str, Path], records: list[dict[str, Any]], tmp_path: Path, format_name: str
) -> None:
    trl = pytest.importorskip("trl", reason="the extra 'hf' is not installed")
    datasets = pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
    model, tokenizer = load(folders[format_name])
    rows = datasets.Dataset.from_list(
        [{"prompt": r["instruction"] + "\n" + r["input"] + "\n", "completion": r["chosen"]} for r in records]
    )
    args = settings(trl.SFTConfig, tmp_path, max_length=128)
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    losses = losses_of(trainer)
    assert losses[-1] < losses[0]


def test_preference_optimisation(
    folders: dict[str, Path], records: list[dict[str, Any]], tmp_path: Path, format_name: str
) -> None:
    trl = pytest.importorskip("trl", reason="the extra 'hf' is not installed")
    datasets = pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
    model, tokenizer = load(folders[format_name])
    rows = datasets.Dataset.from_list(
        [{"prompt": r["instruction"] + "\n", "chosen": r["chosen"], "rejected": r["rejected"]} for r in records[:12]]
    )
    args = settings(trl.DPOConfig, tmp_path, max_length=128)
    reference = load(folders[format_name])[0]
    trainer = trl.DPOTrainer(
        model=model, ref_model=reference, args=args, train_dataset=rows, processing_class=tokenizer
    )
    losses = losses_of(trainer)
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
