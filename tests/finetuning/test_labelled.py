"""Files of texts and classes, and their parts."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fromscratch.config.tune import Classify
from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.labelled import LabelledTexts, labelled_texts, read_table, split_labelled, split_notices
from fromscratch.finetuning.splits import Split, draw_training


def read(path: Path, text: str | None = None, label: str | None = None) -> LabelledTexts:
    return labelled_texts(read_table(path), text, label)


def written(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, "utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'Label,Text\nham,"one, ""two""\nthree"\nspam,four\n'),
        ("a.jsonl", '{"label": "ham", "text": "one, \\"two\\"\\nthree"}\n{"label": "spam", "text": "four"}\n'),
        (
            "a.json",
            json.dumps([{"category": "ham", "text": 'one, "two"\nthree'}, {"category": "spam", "text": "four"}]),
        ),
    ],
)
def test_every_format_holds_the_same(tmp_path: Path, name: str, content: str) -> None:
    found = read(written(tmp_path, name, content))
    assert (found.texts, found.labels) == (['one, "two"\nthree', "four"], ["ham", "spam"])


def test_quotation_marks_of_a_tsv_are_text(tmp_path: Path) -> None:
    found = read(written(tmp_path, "a.tsv", 'Label\tSMS\nham\t"open\nham\tclosed" and on\n'))
    assert found.texts == ['"open', 'closed" and on']


def test_numbers_and_truth_values_are_classes(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"label": 0, "text": "a"}\n{"label": true, "text": "b"}\n')
    assert read(path).labels == ["0", "true"]


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("a,b\nx,y\n", UsageError, r"no column with a usual name for the text among 'a', 'b'; name it with --text-col"),
        (
            "text,body,label\nx,y,z\n",
            UsageError,
            r"several columns with a usual name for the text among 'text', 'body'",
        ),
        ("text,label\nx\n", DataError, r"line 2 has 1 values, but the first line names 2 columns"),
        ("text,text,label\n", DataError, r"names column 'text' twice"),
        ("text,label\n", DataError, "holds no record"),
        ("text,label\na,b\n ,b\n", DataError, r"record 1: 'text' is empty"),
        ("text,label\na,\n", DataError, r"record 0: 'label' is empty"),
        ('text,label\n"a" b,c\n', DataError, "cannot be read as a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read(written(tmp_path, "a.csv", content))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\na,b\n")
    with pytest.raises(UsageError, match="no column 'tekst' for the text among 'text', 'label'"):
        read(path, "tekst")
    with pytest.raises(DataError, match=r"record 0: 'label' is float"):
        read(written(tmp_path, "a.jsonl", '{"label": 0.5, "text": "a"}'))


def many() -> LabelledTexts:
    """A hundred texts of "a", forty of "b", of which ten repeat, and one text of both."""
    texts = [f"a {i}" for i in range(100)] + [f"b {i % 30}" for i in range(40)] + ["both", "both"]
    return LabelledTexts(texts, ["a"] * 100 + ["b"] * 40 + ["a", "b"], "text", "label")


def parts_of(texts: LabelledTexts, tune: Classify, seed: int = 1) -> list[list[str]]:
    split = split_labelled(texts, tune, seed=seed, where="f")
    return [[texts.texts[i] for i in part] for part in (split.train, split.validation, split.test)]


def test_undersampling_draws_as_many_different_texts_of_each_class() -> None:
    texts, tune = many(), Classify(classes=("a", "b"), validation_share=0.1, test_share=0.2)
    parts = parts_of(texts, tune)
    assert [Counter(text[0] for text in part) for part in parts] == [{"a": n, "b": n} for n in (21, 3, 6)]
    drawn = [text for part in parts for text in part]
    assert len(set(drawn)) == len(drawn) == 60 and "both" not in drawn
    assert parts_of(texts, tune) == parts and parts_of(texts, tune, seed=2) != parts
    notices = split_notices(texts, split_labelled(texts, tune, seed=1, where="f"), tune)
    assert notices[0].startswith("texts used, by class: a 30 of 101, b 30 of 41")
    assert notices[1].startswith("2 records are left out, because their text also occurs with another class")


def test_without_undersampling_every_text_is_used_and_repeats_stay_together() -> None:
    texts = many()
    tune = Classify(classes=("a", "b"), balance="weights", validation_share=0.1, test_share=0.2)
    parts = parts_of(texts, tune)
    assert sorted(text for part in parts for text in part) == sorted(texts.texts[:140])
    assert not set(parts[0]) & set(parts[1]) and not set(parts[0]) & set(parts[2]) and not set(parts[1]) & set(parts[2])
    assert Counter(text[0] for text in parts[2])["a"] == 20


def test_fewer_training_texts_are_drawn_by_class_and_a_smaller_number_is_a_part_of_a_larger_one() -> None:
    groups = ["a"] * 60 + ["b"] * 20
    split = Split(tuple(range(80)), (80,), (81,))
    drawn = {count: draw_training(split, count, groups, 7) for count in (8, 20, 80)}
    assert [sum(index < 60 for index in drawn[count].train) for count in (8, 20)] == [6, 15]
    assert set(drawn[8].train) < set(drawn[20].train) and drawn[80].train == split.train
    assert drawn[8].validation == split.validation and drawn[8].test == split.test
    assert drawn[8].notices() == ["tune.train_examples: 8 of 80 training records are drawn"]
    assert draw_training(split, 8, groups, 8).train != drawn[8].train and draw_training(split, None, groups, 7) is split
    with pytest.raises(UsageError, match=r"tune\.train_examples = 81: the training part has 80 records"):
        draw_training(split, 81, groups, 7)


def test_a_class_with_too_few_texts_is_named() -> None:
    texts = LabelledTexts(["x", "y", "z", "w"], ["a", "a", "a", "b"], "text", "label")
    with pytest.raises(DataError, match="class 'b': 1 different records are too few"):
        split_labelled(texts, Classify(classes=("a", "b"), balance="none"), seed=1, where="f")


def test_the_real_messages_are_read(shared_data: Path) -> None:
    found = read(shared_data / "spam" / "sms-spam.tsv")
    assert (found.text_column, found.label_column) == ("SMS", "Label")
    assert Counter(found.labels) == {"ham": 4827, "spam": 747}


def test_a_table_without_its_ending_and_a_missing_one_are_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SMSSpam: .*; of a table, the name must end in \.csv or \.tsv"):
        read_table(written(tmp_path, "SMSSpam", "label\ttext\nham\thi\n"))
    with pytest.raises(UsageError, match=r"none\.csv: no such file; give a CSV or TSV file"):
        read_table(tmp_path / "none.csv")
