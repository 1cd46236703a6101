"""The playground's answers: distributions, texts, chat, classes; as the process of the models gives them."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenizers
from fromscratch.config.recurrent import LSTMConfig
from fromscratch.dashboard import playground_child
from fromscratch.dashboard.playground_child import Answers, Notices
from fromscratch.errors import UsageError
from fromscratch.finetuning.classifier_report import classify_texts
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.formats.model_sources import open_model
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.factory import build_empty, initialise
from fromscratch.tokenizers.bytes import OccurringBytesTokenizer
from tests.finetuning.small import FORMAT

POST = {"Origin": "http://localhost", "Content-Type": "application/json"}
TEXT = "the cat sees"


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What answers in the process of the playground, in this one."""
    return Answers(Notices())


def question(kind: str, source: Path, text: str = TEXT, **more: Any) -> dict[str, Any]:
    usual = {"tokens": [], "history": [], "max_tokens": 0, "temperature": 1.0, "top_k": None, "top_p": None}
    return {"kind": kind, "source": str(source), "text": text, **usual, "min_p": None, "seed": 3, **more}


def answer_of(answers: Answers, *words: Any, **more: Any) -> list[dict[str, Any]]:
    """All messages of an answer."""
    found: list[dict[str, Any]] = []
    last = answers.answer(question(*words, **more), found.append)
    return json.loads(json.dumps([*found, last]))


def test_the_distribution_and_the_surprises_are_those_of_the_model(answers: Answers, models: Path) -> None:
    first, last = answer_of(answers, "continue", models / "base")
    loaded = open_model(str(models / "base"), find_hardware("cpu"))
    with torch.inference_mode():
        logp = loaded.model(torch.tensor([list(TEXT.encode())]))[0].double().log_softmax(-1)
    bits = [token["bits"] for token in first["prompt"]]
    expected = [-float(logp[place, byte]) / math.log(2) for place, byte in enumerate(TEXT.encode()[1:])]
    assert bits[0] is None and bits[1:] == pytest.approx(expected, rel=1e-4)
    found = last["next"]
    assert {one["id"]: one["logp"] for one in found["top"]} == pytest.approx(
        dict(enumerate(logp[-1].tolist())), rel=1e-4
    )
    assert found["rest"] == [] and found["vocabulary"] == 257
    assert found["entropy"] == pytest.approx(float(-(logp[-1].exp() * logp[-1]).sum()) / math.log(2), rel=1e-4)


def test_tokens_beyond_the_most_probable_come_in_bins_that_keep_their_mass_at_every_temperature(
    answers: Answers, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fromscratch.dashboard.playground_text.MAX_SHOWN", 10)
    found = answer_of(answers, "continue", models / "imported")[-1]["next"]
    monkeypatch.undo()
    whole = [one["logp"] for one in answer_of(answers, "continue", models / "imported")[-1]["next"]["top"]]
    assert len(found["top"]) == 10 and sum(count for count, _ in found["rest"]) == 247
    for temperature in (0.5, 1.0, 2.0):
        mass = sum(count * math.exp(mean / temperature) for count, mean in found["rest"])
        assert mass == pytest.approx(sum(math.exp(one / temperature) for one in whole[10:]), rel=0.01)


def test_one_token_at_a_time_gives_what_all_at_once_gives(answers: Answers, models: Path) -> None:
    settings = {"temperature": 1.3, "top_k": 40}
    whole = answer_of(answers, "continue", models / "base", max_tokens=6, **settings)
    chosen: list[int] = []
    for _ in range(6):
        (_, token, last) = answer_of(answers, "continue", models / "base", tokens=chosen, max_tokens=1, **settings)
        chosen.append(token["token"]["id"])
    assert chosen == [message["token"]["id"] for message in whole[1:-1]]
    fresh = answer_of(Answers(Notices()), "continue", models / "base", tokens=chosen)
    assert [one["bits"] for one in fresh[0]["prompt"][-6:]] == pytest.approx(
        [message["token"]["bits"] for message in whole[1:-1]], rel=1e-3
    )
    for other in (whole[-1], last):
        assert [one["logp"] for one in other["next"]["top"]] == pytest.approx(
            [one["logp"] for one in fresh[-1]["next"]["top"]], abs=1e-3
        )


def test_a_token_is_chosen_by_the_sampling_settings(answers: Answers, models: Path) -> None:
    before = answer_of(answers, "continue", models / "base")[-1]["next"]["top"]
    _, greedy, _ = answer_of(answers, "continue", models / "base", max_tokens=1, temperature=0.0)
    assert greedy["token"]["id"] == before[0]["id"] and greedy["token"]["chance"] == 1.0
    _, found, _ = answer_of(answers, "continue", models / "base", max_tokens=1, top_k=3, seed=8)
    logits = torch.tensor([[one["logp"] for one in before]])
    expected = dict(
        zip([one["id"] for one in before], Sampling(top_k=3).probabilities(logits)[0].tolist(), strict=True)
    )
    assert found["token"]["chance"] == pytest.approx(expected[found["token"]["id"]], rel=1e-4)


def test_a_text_longer_than_the_context_is_cut_and_the_answer_says_so(answers: Answers, models: Path) -> None:
    first, *tokens, last = answer_of(answers, "continue", models / "imported", TEXT * 10, max_tokens=40)
    assert len(first["prompt"]) == 32 and "sees at most the last 32" in first["notices"][0]
    assert len(tokens) == 40 and len(last["next"]["top"]) == 257


def test_an_empty_prompt_begins_a_document(answers: Answers, models: Path) -> None:
    first, _ = answer_of(answers, "continue", models / "base", "")
    assert [token["name"] for token in first["prompt"]] == ["end of text"]


def test_half_a_character_is_named_and_shown_as_u_fffd(answers: Answers, models: Path) -> None:
    first, last = answer_of(answers, "continue", models / "base", "é")
    assert [one["text"] for one in first["prompt"]] == ["\ufffd", "\ufffd"]
    assert first["prompt"][0]["name"] == "part of a character, bytes c3"
    names = {one["id"]: one.get("name") for one in last["next"]["top"]}
    assert names[0xFF] == "part of a character, bytes ff" and names[256] == "end of text" and names[65] is None


def test_a_failure_leaves_no_wrong_state_behind(
    answers: Answers, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answer_of(answers, "continue", models / "base", "a house", max_tokens=3, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("fromscratch.generation.decoders.CachedDecoder.next_logits", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer_of(answers, "continue", models / "base", "a house", max_tokens=3, seed=1)
    assert answer_of(answers, "continue", models / "base", "a house", max_tokens=3, seed=1) == right


def test_chat_uses_the_format_of_the_tuning(answers: Answers, models: Path) -> None:
    first, *parts, last = answer_of(answers, "chat", models / "tuned", "Say cat 1.", max_tokens=8, temperature=0.0)
    assert first["prompt"] == FORMAT.replace("{instruction}", "Say cat 1.").replace("{input}", "")
    assert last["answer"] == "".join(part["text"] for part in parts) and last["end"] == "answered"
    history = [["Hello", "Good day"]]
    first, *_ = answer_of(answers, "chat", models / "base", "Who?", history=history, max_tokens=2)
    assert "User: Hello\nAssistant:Good day\nUser: Who?\nAssistant:" in first["prompt"]
    assert "was not tuned on instructions" in first["notices"][0]


def test_a_folder_of_transformers_answers_as_transformers_do(answers: Answers, tmp_path: Path) -> None:
    """GPT-2's shape with random weights, its own vocabulary, and a prompt that is not ASCII."""
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["Größe und Straße"] * 9, trainer)
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=0)
    reference = transformers.GPT2LMHeadModel(config).eval()
    (tmp_path / "hf").mkdir()
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    reference.save_pretrained(tmp_path / "hf")
    text = "Größe 東京 🦊"
    first, *new, last = answer_of(answers, "continue", tmp_path / "hf", text, max_tokens=3, temperature=0.0)
    ids = tokenizer.encode(text).ids
    assert [one["id"] for one in first["prompt"]] == ids and len(new) == 3
    with torch.inference_mode():
        generated = reference.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, pad_token_id=0)
        logp = reference(generated).logits[0, -1].double().log_softmax(-1)
    assert [one["token"]["id"] for one in new] == generated[0, len(ids) :].tolist()
    found = {one["id"]: one["logp"] for one in last["next"]["top"]}
    assert [found[number] for number in range(size)] == pytest.approx(logp.tolist(), abs=1e-4)


def test_a_recurrent_model_of_its_own_bytes(answers: Answers, tmp_path: Path) -> None:
    tokenizer = OccurringBytesTokenizer(bytes(sorted(set("Grüße ".encode()))))
    config = LSTMConfig(vocab_size=tokenizer.vocab_size, context_length=8, num_layers=1, hidden_dim=16)
    model = build_empty(config, "cpu")
    initialise(model, config, seed=1)
    write_model_folder(tmp_path / "lstm", config, model, tokenizer, {})
    first, *new, last = answer_of(answers, "continue", tmp_path / "lstm", "Grüße " * 10, max_tokens=20)
    assert len(first["prompt"]) == 80 and first["notices"] == [] and first["model"]["context_length"] is None
    assert len(new) == 20 or last["end"] == "end-of-text"
    with torch.inference_mode():
        ids = torch.tensor([[one["id"] for one in first["prompt"]]])
        expected = model.eval()(ids)[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None]) / -math.log(2)
    assert [one["bits"] for one in first["prompt"]][1:] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    with pytest.raises(UsageError, match="holds the byte 0xe6"):
        answer_of(answers, "continue", tmp_path / "lstm", "東")
    with pytest.raises(UsageError, match=r"cannot write how a transcript begins .*; use 'Next token'"):
        answer_of(answers, "chat", tmp_path / "lstm", "Grüße")


def test_a_classifier_gives_probabilities_and_only_classifies(answers: Answers, models: Path) -> None:
    (found,) = answer_of(answers, "classify", models / "classes", "3 cat")
    loaded = open_model(str(models / "classes"), find_hardware("cpu"), may_classify=True)
    assert found["probabilities"] == pytest.approx(classify_texts(loaded, ["3 cat"])[0]["probabilities"])
    assert found["class"] == max(found["probabilities"], key=found["probabilities"].get) and found["calibrated"]
    with pytest.raises(UsageError, match="classifies texts; open it under 'Classify'"):
        answer_of(answers, "continue", models / "classes")
    with pytest.raises(UsageError, match="is a language model; open it under 'Next token'"):
        answer_of(answers, "classify", models / "base")


def test_a_checkpoint_can_be_named_and_a_changed_run_is_read_anew(
    answers: Answers, models: Path, tmp_path: Path
) -> None:
    steps = sorted(path.name for path in (models / "base" / "checkpoints").glob("step-*"))
    by_step = [answer_of(answers, "continue", f"{models / 'base'}@step-{int(name[5:])}")[0] for name in steps]
    assert [one["model"]["step"] for one in by_step] == [int(name[5:]) for name in steps] and len(steps) > 1
    run = Path(shutil.copytree(models / "base", tmp_path / "run", symlinks=True))
    assert answer_of(answers, "continue", run)[0]["model"]["step"] == int(
        (run / "checkpoints/best").readlink().name[5:]
    )
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to(steps[0])
    assert answer_of(answers, "continue", run)[0]["model"]["step"] == int(steps[0][5:])


def test_weights_that_are_too_large_are_refused_before_they_are_read(
    answers: Answers, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground_child, "MAX_WEIGHTS_BYTES", 1_000)
    copied = Path(shutil.copytree(models / "imported", tmp_path / "copied"))
    with pytest.raises(UsageError, match=r"the playground opens up to 1 kB"):
        answer_of(answers, "continue", copied)
