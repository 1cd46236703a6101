"""Classifiers: trained, resumed, measured, used and published, from our own models and those of transformers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tokenizers as hf
from fromscratch.config.loading import read_run_config
from fromscratch.config.train import AdamW
from fromscratch.config.tune import Classify
from fromscratch.evaluation.classification import mean_loss, tempered_loss
from fromscratch.finetuning.classification import Classification, class_weights, score_texts
from fromscratch.formats.checkpoints import MODEL_FILE
from fromscratch.formats.classifiers import known_temperature
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.machine.precision import Precision
from fromscratch.publishing.tokenizer_files import write_tokenizer
from fromscratch.runs.charts import PNG_SIGNATURE
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records as read_lines
from fromscratch.session.tuning import plan_tuning, tuning_config
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.training.objective import Runtime
from tests.command import Answer, refused, run_command
from tests.finetuning.small import make_base

CLASSES = ("animal", "colour", "place")
WORDS = {"animal": ["cat", "dog", "cow"], "colour": ["red", "blue", "grey"], "place": ["house", "street", "town"]}
FAST = ("--device", "cpu", "--quiet", "--set", "train.precision=fp32", "--epochs", "6", "--patience", "0")


def write_texts(folder: Path) -> None:
    """Ninety texts of three classes; one is longer than the context, and one class is twice as frequent."""
    rows = [
        (name, f"{i} {'very ' * (i % 3)}{WORDS[name][i % 3]}")
        for name in CLASSES
        for i in range(45 if name == "animal" else 23)
    ]
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "text"), *rows, ("place", "a street " * 20)])


def make_olmo2(folder: Path) -> None:
    config = transformers.Olmo2Config(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    transformers.Olmo2ForCausalLM(config).save_pretrained(folder / "runs" / "base")
    write_tokenizer(BytesTokenizer(), folder / "runs" / "base", context_length=96)


def make_bert(folder: Path) -> None:
    """A BERT as masked language modelling leaves it, without a pooler, and a tokenizer with its special tokens."""
    config = transformers.BertConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        initializer_range=0.1,
    )
    torch.manual_seed(1)
    transformers.BertForMaskedLM(config).save_pretrained(folder / "runs" / "base")
    write_framed_tokenizer(folder / "runs" / "base")


def write_framed_tokenizer(folder: Path, *, first: str = "[CLS]", last: str = "[SEP]", pad: str = "[PAD]") -> None:
    """Bytes, with the padding token as id 0 and special tokens around each text."""
    characters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([pad, first, last, *characters])}
    engine = hf.Tokenizer(hf.models.BPE(vocabulary, []))
    engine.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = hf.decoders.ByteLevel()
    engine.add_special_tokens([pad, first, last])
    engine.post_processor = hf.processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, 1), (last, 2)]
    )
    engine.save(str(folder / "tokenizer.json"))


MAKERS = {"own": make_base, "olmo2": make_olmo2, "bert": make_bert}


@pytest.fixture(scope="module", params=MAKERS)
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a very small model in ``runs/base``, and ``texts.csv``."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder)
    write_texts(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)


def tune(name: str, *arguments: object) -> Answer:
    model = "runs/base" if Path("runs/base/config.json").exists() else "base"
    rate = () if "--learning-rate" in arguments else ("--learning-rate", "0.001" if is_encoder() else "0.01")
    return run_command("finetune", "classify", model, "--data", "texts.csv", "--name", name, *FAST, *rate, *arguments)


def is_encoder() -> bool:
    """Whether the base model of the current folder is the BERT."""
    config = Path("runs/base/config.json")
    return config.exists() and "bert" in config.read_text()


def tuned(name: str, *arguments: object) -> LoadedModel:
    answer = tune(name, *arguments)
    assert answer.code == 0, answer.err
    return open_model(f"runs/{name}", find_hardware("cpu"), may_classify=True)


def weights(name: str, checkpoint: str = "latest") -> dict[str, torch.Tensor]:
    return read_tensors((Path("runs") / name / "checkpoints" / checkpoint).resolve() / MODEL_FILE)


def report_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"runs/{name}/classification.json").read_text())
    return found


def test_a_run_learns_the_classes_and_is_measured() -> None:
    slowly = ("--epochs", "20") if is_encoder() else ()
    answer = tune("learns", "--json", *slowly)
    assert answer.code == 0, answer.err
    printed = json.loads(answer.out)
    report = report_of("learns")
    assert printed["classification"] == report and printed["outcome"] == "done"
    assert report["classes"] == list(CLASSES) and report["step"] == printed["best_step"]
    assert report["test"]["balanced_accuracy"] > 0.6  # always the same class: a third
    assert report["test"]["texts"] == 6 == sum(map(sum, report["test"]["confusion"]))
    assert Path("runs/learns/charts/confusion-matrix.png").read_bytes().startswith(PNG_SIGNATURE)
    assert "animal 23 of 45, colour 23 of 23, place 23 of 24" in answer.err
    assert "1 records are longer than the context of 96 tokens" in answer.err


def test_a_stopped_run_continues_bit_for_bit() -> None:
    tuned("whole")
    assert tune("stopped", "--stop-after", "5").code == 75
    assert not Path("runs/stopped/classification.json").exists()
    tuned("stopped")
    for part in ("metrics", "events"):
        first, second = (
            [
                (r["step"], r["loss"])
                for r in read_lines(getattr(RunDirectory(Path("runs") / name), part))
                if "loss" in r
            ]
            for name in ("whole", "stopped")
        )
        assert first == second
    assert all(torch.equal(tensor, weights("stopped")[name]) for name, tensor in weights("whole").items())
    assert report_of("whole") == report_of("stopped")


@pytest.mark.parametrize("train", ["head", "last-block", "all", "lora"])
def test_exactly_the_wanted_weights_are_trained(train: str) -> None:
    if train == "lora":
        pytest.importorskip("peft")
    model = tuned(f"train-{train}", "--train", train, "--epochs", "1").model
    before = dict(open_model("runs/base", find_hardware("cpu"), may_encode=True).model.named_parameters())
    head = set(model.head_parameters())
    changed = {
        name for name, parameter in model.named_parameters() if name not in head and not parameter.equal(before[name])
    }
    frozen = set(dict(model.named_parameters())) - head - changed
    marks = ("blocks.1.", "layers.1.", "layer.1.", "final_norm", "model.norm", "pooler")
    last = {name for name in before if any(mark in name for mark in marks)}
    if train == "head":
        assert changed == {name for name in last if "pooler" in name}  # pre-training leaves a BERT's untrained
    elif train == "last-block":
        assert changed == last - head
    elif train == "all":
        assert not frozen
    else:
        assert changed and all("weight" in name and "orm" not in name and "embed" not in name for name in changed)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_overconfidence_does_not_raise_the_validation_loss(balance: str) -> None:
    name = f"validated-{balance}"
    settings = ("--balance", balance, "--set", "tune.validation_share=0.3", "--epochs", "1", "--patience", "0")
    loaded = tuned(name, *settings)
    plan = plan_tuning(read_run_config(Path("runs") / name / "run.toml"), {}, "test")
    with torch.no_grad():
        for parameter in loaded.model.last_layer().parameters():
            parameter.mul_(50)
    rows = json.loads(Path(f"runs/{name}/split/validation.json").read_text())
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    logits = score_texts(loaded, [row["text"] for row in rows])
    assert isinstance(plan.objective, Classification) and bool(plan.objective.weights) == (balance == "weights")
    weights = plan.objective.weights
    assert tempered_loss(logits, labels, weights) < 0.9 * mean_loss(logits, labels, 1.0, weights)
    runtime = Runtime(torch.device("cpu"), 4, Precision("fp32", torch.device("cpu")))
    loss = plan.objective.evaluate(loaded.model, runtime, lambda: False)
    assert loss == pytest.approx(tempered_loss(logits, labels, weights), rel=1e-4)
    assert plan.objective.evaluate(loaded.model, runtime, lambda: True) is None


@pytest.mark.parametrize(("train", "rate"), [("head", 1e-3), ("all", 5e-5)])
def test_the_learning_rate_suits_the_width_of_the_model(train: str, rate: float) -> None:
    model, width = ("runs/base", 32) if Path("runs/base/config.json").exists() else ("base", 16)
    command = ("finetune", "classify", model, "--data", "texts.csv", *FAST[:2], *FAST[3:], "--stop-after", "1")
    name = f"rate-{train}"
    answer = run_command(*command, "--train", train, "--name", name)
    assert answer.code == 75, answer.err
    optimizer = read_run_config(Path("runs") / name / "run.toml").train.optimizer
    assert optimizer.learning_rate == pytest.approx(rate * 768 / width, rel=0.01)
    assert f"learning rate {optimizer.learning_rate:g}, for tune.train = {train} and a model {width} wide" in answer.err
    given = run_command(*command, "--train", train, "--name", f"given-{train}", "--learning-rate", "3e-4")
    assert "notice: learning rate" not in given.err and given.code == 75, given.err
    assert read_run_config(Path("runs") / f"given-{train}" / "run.toml").train.optimizer.learning_rate == 3e-4
    file = {"data": {"store": "texts.csv"}, "train": {"start_from": {"model": model}, "global_batch": 8}}
    planned = plan_tuning(tuning_config({**file, "tune": {"kind": "classify", "train": train}}, [], "test"), {}, "test")
    assert planned.config.train.optimizer == AdamW() and not any("learning rate" in text for text in planned.notices)


def test_weights_of_classes_use_all_texts() -> None:
    loaded = tuned("weighted", "--balance", "weights", "--epochs", "1")
    assert loaded.classes == CLASSES
    texts = [
        json.loads((Path("runs/weighted/split") / f"{part}.json").read_text())
        for part in ("train", "validation", "test")
    ]
    assert sum(map(len, texts)) == 92
    assert class_weights(["a", "b", "b", "b"], ("a", "b")) == pytest.approx((2.0, 2 / 3))  # 1 on average
    plain = tuned("unweighted", "--balance", "none", "--epochs", "1")
    assert plain.fingerprint() != loaded.fingerprint()


def test_classify_prints_calibrated_probabilities() -> None:
    loaded = tuned("used")
    temperature = known_temperature(loaded)
    assert temperature == report_of("used")["temperature"] != 1.0
    assert temperature is not None
    answer = run_command("classify", "used", "-", "--json", typed="100 cat\n\n200 very red\n")
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [one["text"] for one in found] == ["100 cat", "200 very red"]
    for one in found:
        ids = torch.tensor(loaded.tokenizer.encode(one["text"]).tolist())
        if is_encoder():
            ids = torch.cat([torch.tensor([1]), ids, torch.tensor([2])])  # [CLS] and [SEP]
        with torch.inference_mode():
            scores = loaded.model(ids[None])
        expected = ((scores[0] if is_encoder() else scores[0, -1]) / temperature).softmax(0)
        assert list(one["probabilities"]) == list(CLASSES)
        assert list(one["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert found[0]["class"] == "animal"
    long = run_command("classify", "used", "very " * 30 + "red")
    assert "1 texts are longer than 96 tokens; their ends are cut" in long.err
    tuned("off", "--learning-rate", "0.1", "--epochs", "3")
    best = Path("runs/off/checkpoints/best").resolve().name
    last = next(p.name for p in Path("runs/off/checkpoints").glob("step-*") if p.name != best)
    other = run_command("classify", f"off@step-{int(last[5:])}", "100 cat")
    assert "no temperature was fitted for these weights" in other.err and other.code == 0
    assert run_command("classify", "used", "100 cat").out.startswith("animal ")


@pytest.mark.parametrize("form", ["native", "custom"])
def test_transformers_loads_it_with_equal_probabilities(base: Path, tmp_path: Path, form: str) -> None:
    if form == "custom" and Path("runs/base/config.json").exists():
        pytest.skip("models of transformers are published as native only")
    tuned("exported")
    check_published("exported", tmp_path / f"{base.name}-{form}", form)


def check_published(run: str, folder: Path, form: str) -> None:
    """Checks that transformers, and this package again, load a published classifier with equal probabilities."""
    published = run_command("publish", f"runs/{run}", "--to", folder, "--format", form)
    assert published.code == 0, published.err
    texts = ["100 cat", "a very very long grey text", "town"]
    answer = run_command("classify", run, "-", "--json", typed="\n".join(texts))
    expected = [list(json.loads(line)["probabilities"].values()) for line in answer.out.splitlines()]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=form == "custom")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = theirs.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert logits.softmax(1).tolist() == [pytest.approx(row, abs=1e-5) for row in expected]
    assert [theirs.config.id2label[i] for i in range(3)] == list(CLASSES)
    again = run_command("classify", folder, "-", "--json", typed="\n".join(texts))
    assert again.code == 0, again.err
    read_back = [list(json.loads(line)["probabilities"].values()) for line in again.out.splitlines()]
    assert read_back == [pytest.approx(row, abs=1e-5) for row in expected]
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "generate" not in card
    refused("generate", folder, "cat", code=2, says="classifies texts and has no language head")


def test_a_classifier_is_no_language_model_and_a_language_model_no_classifier() -> None:
    tuned("apart", "--epochs", "1")
    refused("generate", "apart", "cat", code=2, says="classifies texts and has no language head")
    refused("classify", "runs/base", "cat", code=2, says="'fromscratch finetune classify' makes a classifier")
    refused("classify", "apart", "", code=2, says="empty text")
    refused("classify", "apart", "-", code=2, says="stdin has no text")


def test_random_weights_are_the_baseline() -> None:
    if Path("runs/base/config.json").exists():
        data = ("finetune", "classify", "runs/base", "--data", "texts.csv", *FAST)
        refused(
            *data, "--random-weights", code=2, says="tune.random_weights: a model of kind 'huggingface' is not trained"
        )
        return
    tuned("random", "--train", "head", "--epochs", "1", "--random-weights")
    model, old = weights("random"), weights("base")
    assert all(not tensor.equal(model[name]) for name, tensor in old.items() if name.endswith("query_key_value.weight"))


def test_a_run_file_trains_and_measures_the_same() -> None:
    tuned("by-verb", "--epochs", "1")
    model = "runs/base" if Path("runs/base/config.json").exists() else "base"
    Path("classify.toml").write_text(
        f'[data]\nstore = "texts.csv"\nepochs = 1\n[train]\nstart_from = "{model}"\nglobal_batch = 8\n'
        f'precision = "fp32"\noptimizer = {{ kind = "adamw", learning_rate = {0.001 if is_encoder() else 0.01} }}\n'
        '[tune]\nkind = "classify"\npatience = 0\n'
    )
    assert run_command("train", "classify.toml", "--name", "by-file", "--device", "cpu", "-q").code == 0
    assert report_of("by-file") == report_of("by-verb")


def test_one_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("text,label\n" + "".join(f"text {i},a\n" for i in range(50)))
    refused("finetune", "classify", "runs/base", "--data", path, code=3, says="all texts are of class 'a'")


def test_lora_is_chosen_by_train() -> None:
    assert Classify.model_validate({"train": "lora"}).lora is not None
    with pytest.raises(ValueError, match="lora needs train"):
        Classify.model_validate({"train": "head", "lora": {}})


@pytest.mark.parametrize("family", ["Roberta", "DistilBert", "ModernBert"])
def test_other_encoders_are_published_and_read_back(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of several layers, positions that begin after the padding's id, models without token types."""
    if not is_encoder():
        pytest.skip("once is enough")
    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
    distil = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 259} | more
    settings: dict[str, Any] = (
        distil if family == "DistilBert" else shape | more | {"cls_token_id": 1, "sep_token_id": 2}
    )
    settings |= {"eos_token_id": 2, "initializer_range": 0.1}
    (tmp_path / "runs").mkdir()
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**settings)
    getattr(transformers, f"{family}ForMaskedLM")(config).save_pretrained(tmp_path / "runs" / "base")
    write_framed_tokenizer(tmp_path / "runs" / "base")
    write_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = tuned("encoder", "--epochs", "1", "--learning-rate", "0.001")
    assert loaded.config.context_length == (63 if family == "Roberta" else 64)
    check_published("encoder", tmp_path / "published", "native")


def test_an_encoder_is_no_language_model() -> None:
    if not is_encoder():
        pytest.skip("of encoders")
    says = "predicts no next token; 'fromscratch finetune classify' makes a classifier of it"
    refused("generate", "runs/base", "cat", code=2, says=says)
    refused("finetune", "instruct", "runs/base", "--data", "texts.csv", code=2, says=says)


def test_a_number_of_training_texts_is_drawn() -> None:
    answer = tune("few", "--epochs", "1", "--train-examples", "30")
    assert answer.code == 0, answer.err
    assert len(json.loads(Path("runs/few/split/train.json").read_text())) == 30
    assert "30 of 60 training records are drawn" in answer.err, answer.err
