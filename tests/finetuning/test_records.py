"""Files of records, prompt formats, examples, splits and batches."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fromscratch.cli.main import app
from fromscratch.config.loading import load_run_config
from fromscratch.config.prompts import PROMPT_FORMATS, PromptFormat
from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.batches import EpochOrder, PaddedBatches
from fromscratch.finetuning.instruction import IGNORED, encode_examples
from fromscratch.finetuning.prompts import open_prompt_format
from fromscratch.finetuning.records import Exchange, Turn, read_records, to_exchanges
from fromscratch.finetuning.splits import split_records
from fromscratch.generation.conversation import template_of
from fromscratch.processes.world import ALONE, World
from fromscratch.publishing.prompt_files import chat_template
from fromscratch.tokenizers.bytes import BytesTokenizer

PLAIN = PromptFormat(turn="Q{instruction}A")
GOOD = {"instruction": "a", "input": None, "output": "b"}
USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}


def written(folder: Path, content: Any) -> Path:
    path = folder / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty; it must hold records"),
        ("[]", "holds no record"),
        ("[{", "not valid JSON"),
        ('{"instruction": "a", "output": "b"}\n{"instruction"', "line 2 is not valid JSON"),
        ("7", "holds int, expected a JSON list"),
        ([GOOD, 3], "record 1 is int"),
        ([GOOD, {"input": "x", "output": "y"}], "record 1 has no 'instruction' (its keys: input, output)"),
        ([{"instruction": "a"}], "record 0 has no 'output'"),
        ([{**GOOD, "input": 5}], "record 0: 'input' is int, expected text"),
        ([GOOD, GOOD, {**GOOD, "output": None}], "record 2: 'output' is NoneType"),
        ([{**GOOD, "output": " "}], "record 0: 'output' is empty"),
        ([{"messages": "hello"}], "record 0: 'messages' must be a list"),
        ([{"messages": [USER]}], "record 0: its roles are user; expected user and assistant in turn"),
        ([{"messages": [USER, {"role": "assistant"}]}], "record 0, message 1 has no 'content'"),
        ([{"messages": [USER, ASSISTANT, ASSISTANT, USER]}], "expected user and assistant in turn"),
    ],
)
def test_b32_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(DataError) as found:
        to_exchanges(read_records(written(tmp_path, content)))
    assert sentence in str(found.value) and "data.json" in str(found.value)


def test_lists_lines_chats_and_null_inputs_are_read(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT, USER, ASSISTANT]}
    as_list = read_records(written(tmp_path, [GOOD, chat]))
    as_lines = read_records(written(tmp_path, json.dumps(GOOD) + "\n\n" + json.dumps(chat) + "\n"))
    assert as_list.records == as_lines.records and as_list.fingerprint == as_lines.fingerprint
    turn = Turn("u", "", "v")
    assert to_exchanges(as_list) == [Exchange((Turn("a", "", "b"),)), Exchange((turn, turn), "s")]
    with pytest.raises(UsageError, match="no such file"):
        read_records(tmp_path / "none.json")


def test_the_formats_are_those_of_their_papers() -> None:
    alpaca = PROMPT_FORMATS["alpaca"]
    assert alpaca.prompt("Do it.", "Here") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo it.\n\n### Input:\nHere\n\n### Response:\n"
    )
    assert PROMPT_FORMATS["phi3"].prompt("Do it.") == "<|user|>\nDo it.<|end|>\n<|assistant|>\n"
    chat = Exchange((Turn("a {input}", "", "b"), Turn("c", "d", "e")), "s")
    assert "".join(text for text, _ in chat.pieces(PROMPT_FORMATS["chatml"])) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na {input}<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc\nd<|im_end|>\n<|im_start|>assistant\ne<|im_end|>\n"
    )
    assert chat.prompt(PLAIN) == "Qs\n\na {input}AbQc\nd" + "A"


def test_own_formats_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('turn = "Q: {instruction}\\nA:"\nending = "END"\n')
    assert open_prompt_format(str(path)) == PromptFormat(turn="Q: {instruction}\nA:", ending="END")
    assert open_prompt_format("Q {instruction} {input}").prompt("i", "{instruction}") == "Q i {instruction}"
    path.write_text('turn = "Q: {instructions}"\n')
    for text, sentence in [(str(path), r"must contain \{instruction\}"), ("alpacca", "must be alpaca, phi3, chatml")]:
        with pytest.raises(UsageError, match=sentence):
            open_prompt_format(text)


def test_labels_end_with_the_end_of_text_and_prompts_can_be_masked() -> None:
    tokenizer = BytesTokenizer()
    exchange = Exchange((Turn("i", "", "xy"),))
    for mask, targets in ((False, [*b"iAxy", 256]), (True, [IGNORED, IGNORED, *b"xy", 256])):
        (example,) = encode_examples([exchange], tokenizer, PLAIN, mask_prompt=mask, context_length=9).kept
        assert example.inputs.tolist() == [*b"QiAxy"]
        assert example.targets.tolist() == targets


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_b33_long_records_are_cut_or_dropped_and_counted(mask_prompt: bool) -> None:
    exchanges = [Exchange((Turn("i" * size, "", "x" * 5),)) for size in (1, 3, 4, 6, 7, 100_000)]
    found = encode_examples(exchanges, BytesTokenizer(), PLAIN, mask_prompt=mask_prompt, context_length=8)
    assert (len(found.kept), found.num_cut, found.num_dropped) == (4, 3, 2)
    assert all(len(example.inputs) <= 8 and (example.targets != IGNORED).any() for example in found.kept)
    assert found.kept[-1].targets[-1] == ord("x")


def test_the_split_is_85_5_10_seeded_and_keeps_the_same_questions_together() -> None:
    keys = [str(number) for number in range(1000)]
    found = split_records(keys, validation=0.05, test=0.1, seed=1, where="f")
    assert (len(found.train), len(found.validation), len(found.test)) == (850, 50, 100)
    assert sorted((*found.train, *found.validation, *found.test)) == list(range(1000))
    assert found == split_records(keys, validation=0.05, test=0.1, seed=1, where="f")
    assert found.test != split_records(keys, validation=0.05, test=0.1, seed=2, where="f").test
    doubled = split_records([*keys, *keys[:300]], validation=0.05, test=0.1, seed=1, where="f")
    assert doubled.repeated == 300 and "300 records ask the same" in doubled.notices()[0]
    parts = [{index % 1000 for index in part} for part in (doubled.train, doubled.validation, doubled.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    with pytest.raises(DataError, match="2 different records are too few"):
        split_records(["a", "b"], validation=0.05, test=0.1, seed=1, where="f")


def test_epochs_shuffle_batches_of_similar_lengths() -> None:
    lengths = tuple((7 * number) % 100 + 1 for number in range(203))
    order = EpochOrder(lengths, 8, seed=3, epochs=2)
    assert (order.steps_per_epoch, order.num_left_out, order.num_steps) == (25, 3, 50)
    epochs = [[order.indices(step) for step in range(begin, begin + 25)] for begin in (0, 25)]
    for batches in epochs:
        flat = [index for batch in batches for index in batch]
        assert len(set(flat)) == 200
        widths = sum(8 * max(lengths[index] for index in batch) for batch in batches)
        assert widths < 1.15 * sum(lengths[index] for index in flat)  # shuffled batches pad to 1.8 times
    assert epochs[0] != epochs[1]
    assert sorted(map(sorted, epochs[0])) != sorted(map(sorted, epochs[1]))
    assert EpochOrder(lengths, 8, seed=3, epochs=2).indices(30) == epochs[1][5]


def test_chat_and_published_templates_render_what_tuning_trained_on() -> None:
    jinja2 = pytest.importorskip("jinja2")
    chat = Exchange((Turn('a "q" {{', "", "b"), Turn("c", "", "d")), "s")
    messages = [
        {"role": role, "content": text}
        for role, text in (("system", "s"), ("user", 'a "q" {{'), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    for form in PROMPT_FORMATS.values():
        rendered = jinja2.Environment().from_string(chat_template(form)).render(messages=messages)
        assert rendered == "".join(text for text, _ in chat.pieces(form))
    template = template_of(PROMPT_FORMATS["phi3"])
    asked = Exchange((Turn("a", "", "b"), Turn("c", "", "d")))
    assert template.prompt([("a", "b")], "c") == asked.prompt(PROMPT_FORMATS["phi3"])
    assert template.stop == ("<|end|>",)
    assert template_of(PROMPT_FORMATS["alpaca"]).prompt([("a", "b")], "c") == PROMPT_FORMATS["alpaca"].prompt("c")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dropout", "much"], "--dropout much: must be trained, 0, or a share below 1"),
        (["--dropout", "1.5"], "tune.dropout = 1.5"),
        (["--format", "alpacca"], "must be alpaca, phi3, chatml"),
        (["--learning-rate", "-1"], "learning_rate = -1"),
        (["--set", "tune.patient=3"], "tune.patient: unknown key; did you mean 'patience'"),
        (["--name", "../x"], "run name"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    data = written(tmp_path, [GOOD])
    found = CliRunner().invoke(app, ["finetune", "instruct", "nothing", "--data", str(data), *arguments])
    assert isinstance(found.exception, UsageError)
    assert sentence in str(found.exception)


@pytest.mark.parametrize("verb", ["plan", "bench"])
def test_what_only_knows_pre_training_says_so(tmp_path: Path, verb: str) -> None:
    (tmp_path / "tune.toml").write_text('[data]\nstore = "a.json"\n[tune]\nkind = "instruct"\n')
    found = CliRunner().invoke(app, [verb, str(tmp_path / "tune.toml")])
    assert isinstance(found.exception, UsageError)
    assert "[tune] is for 'fromscratch train'" in str(found.exception)


def test_a_run_file_cannot_train_a_transformers_model_from_random_weights(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nstore = "a"\n[model]\nkind = "huggingface"\narchitecture = "{}"\n')
    with pytest.raises(UsageError, match="cannot be trained from random weights; remove"):
        load_run_config(path)


def test_every_sequence_has_the_same_keys_whatever_the_division() -> None:
    order = EpochOrder(tuple(range(1, 25)), global_batch=8, seed=3, epochs=1)

    def collate(indices: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)[:, None].expand(len(indices), width)
        return rows, rows

    def keys(micro_batch: int, world: World) -> dict[int, tuple[int, int, int]]:
        """Of each example: the seed of the step for kernels, its place in the global batch, its own seed."""
        batches = PaddedBatches(order, collate, micro_batch, torch.device("cpu"), targets_per_example=24, world=world)
        found = {}
        for batch in batches.micro_batches(1):
            assert batch.kernel_key is not None
            seed, first = batch.kernel_key
            for row, (example, key) in enumerate(zip(batch.inputs[:, 0].tolist(), batch.sequence_keys, strict=True)):
                found[example] = (seed, first + row, key)
        return found

    whole = keys(8, ALONE)
    assert [place for _, place, _ in whole.values()] == list(range(8))
    assert keys(3, ALONE) == keys(1, ALONE) == whole
    ranks = [keys(3, World(rank=rank, size=3)) for rank in range(3)]
    assert ranks[0] | ranks[1] | ranks[2] == whole
