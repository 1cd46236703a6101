"""Teaches a model to follow instructions, and asks it: ``python instructions.py instruction-data.json FOLDER [MODEL]``.

The data is a JSON list of records with ``instruction``, ``input`` (may be empty) and ``output``.
"""

import json
import sys
from pathlib import Path

import fromscratch
from fromscratch.generation.conversation import TEMPLATES

data, folder = Path(sys.argv[1]), Path(sys.argv[2])
source = sys.argv[3] if len(sys.argv) > 3 else "gpt2-medium"
template = TEMPLATES["alpaca"]  # what 'fromscratch chat MODEL --template alpaca' uses


def question(record: dict[str, str]) -> str:
    """The instruction, and the input if there is one."""
    return record["instruction"] + (f"\n\n### Input:\n{record['input']}" if record["input"] else "")


# 1. One text per record: the prompt as the model will see it, and the answer.
records = json.loads(data.read_text("utf-8"))
folder.mkdir(parents=True, exist_ok=True)
with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
    for record in records:
        file.write(json.dumps({"text": template.prompt([], question(record)) + record["output"]}) + "\n")

# 2. Tokens, with the tokenizer of the model. A twentieth of the records is held out.
model = fromscratch.load_model(source)
store = fromscratch.prepare(folder / "texts.jsonl", folder / "store", tokenizer=model.tokenizer, validation=0.05)

# 3. Two epochs from the weights of the model.
(folder / "instructions.toml").write_text("""\
[data]
store = "store"
tokens = "all"
epochs = 2
shuffle = true

[train]
global_batch = 1
evaluate_every = 10
optimizer = { kind = "adamw", learning_rate = 5e-5, weight_decay = 0.1 }
""")
run = fromscratch.train(
    folder / "instructions.toml",
    runs_dir=folder / "runs",
    overrides={"model": model.config.model_dump(mode="json", exclude_none=True), "train.start_from": source},
)
print(f"{run.path}: {run.summary.outcome}, held-out loss {run.overview.best_loss:.3f}")

# 4. Ask.
trained = run.load_model()
for record in records[:3]:
    prompt = template.prompt([], question(record))
    answer = trained.generate(prompt, max_new_tokens=60, temperature=0, stop=template.stop)
    print(f"{record['instruction']}\n  -> {answer.strip()}")
