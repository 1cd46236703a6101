"""Trains a classifier of spam, and measures it: ``python spam.py SMSSpamCollection FOLDER [MODEL] [EPOCHS]``.

The data has one message per line: ``ham`` or ``spam``, a tab, the text. Needs the transformers library.
"""

import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fromscratch

data, folder = Path(sys.argv[1]), Path(sys.argv[2])
source = sys.argv[3] if len(sys.argv) > 3 else "gpt2"
epochs = int(sys.argv[4]) if len(sys.argv) > 4 else 5
LABELS = ("ham", "spam")

# 1. As many messages of each kind; 70% to train on, 30% to measure with.
lines = [line.split("\t", 1) for line in data.read_text("utf-8").split("\n") if "\t" in line]
by_label = [[text for label, text in lines if label == wanted] for wanted in LABELS]
count, draw = min(map(len, by_label)), random.Random(123)
rows = [(text, label) for label, texts in enumerate(by_label) for text in draw.sample(texts, count)]
draw.shuffle(rows)
training, held_out = rows[: int(0.7 * len(rows))], rows[int(0.7 * len(rows)) :]

# 2. The model, as a folder that transformers loads with a new head of two classes.
report = fromscratch.load_model(source).publish(folder / "published")
tokenizer = AutoTokenizer.from_pretrained(report.folder)
model = AutoModelForSequenceClassification.from_pretrained(report.folder, num_labels=2, trust_remote_code=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)


def encode(batch: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    """Ids and attention mask [batch, time], and labels [batch]."""
    texts, labels = zip(*batch, strict=True)
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=120, return_tensors="pt")
    return {**inputs, "labels": torch.tensor(labels)}


def accuracy(rows: list[tuple[str, int]]) -> float:
    """Share of the messages that the model labels correctly."""
    model.eval()
    right = 0
    for begin in range(0, len(rows), 8):
        batch = {name: tensor.to(device) for name, tensor in encode(rows[begin : begin + 8]).items()}
        with torch.inference_mode():
            right += int((model(**batch).logits.argmax(dim=-1) == batch["labels"]).sum())
    return right / len(rows)


# 3. Train all weights; the order of the messages is drawn anew in each epoch.
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.1)
print(f"before training: {accuracy(held_out):.1%} of {len(held_out)} held-out messages are labelled correctly")
for epoch in range(epochs):
    model.train()
    draw.shuffle(training)
    for begin in range(0, len(training), 8):
        batch = {name: tensor.to(device) for name, tensor in encode(training[begin : begin + 8]).items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {accuracy(held_out):.1%} of the held-out messages correct")
model.save_pretrained(folder / "classifier")
tokenizer.save_pretrained(folder / "classifier")
