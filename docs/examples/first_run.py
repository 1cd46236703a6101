"""From a text to a published model, from Python: ``python first_run.py TEXT FOLDER [STEPS]``."""

import sys
from pathlib import Path

import fromscratch

text, folder = Path(sys.argv[1]), Path(sys.argv[2])
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 300

# 1. Texts become a token store. The end of a short text is held out.
store = fromscratch.prepare(text, folder / "store", tokenizer="bytes")
print(f"{store.split('train').tokens:,} tokens to train on, {store.split('validation').tokens:,} held out")

# 2. A run file says what is trained, not where.
(folder / "tiny.toml").write_text("""\
[model]
num_layers = 2
num_heads = 2
embedding_dim = 64
context_length = 64
dropout = 0.0

[data]
store = "store"
epochs = 1000
tokens = 1_000

[train]
global_batch = 16
evaluate_every = 100
optimizer = { kind = "adamw", learning_rate = 3e-3 }
""")

# 3. Train: the same call continues a stopped run. Any key can be changed.
run = fromscratch.train(
    folder / "tiny.toml",
    runs_dir=folder / "runs",
    overrides={"data.tokens": steps * 16 * 64, "train.seed": 7},
)
print(f"{run.name}: {run.summary.outcome}, best held-out loss {run.overview.best_loss:.3f}")

# 4. What happened, step by step: a pandas frame where pandas is installed.
metrics = run.metrics()
print(f"{len(metrics)} steps recorded; checkpoints {list(run.checkpoints)}")

# 5. Use the model.
model = run.load_model()
print(repr(model.generate("The ", max_new_tokens=60, temperature=0.7, seed=1)))
report = model.evaluate()
print(f"{report.bits_per_byte:.3f} bits per byte on {report.bytes:,} bytes")

# 6. Publish: a folder for transformers' AutoModelForCausalLM.
print(model.publish(folder / "published").format)
