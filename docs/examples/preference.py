"""Preference tuning with trl: ``python preference.py instruction-data-with-preference.json FOLDER MODEL [RATE]``.

The data is a JSON list of records with ``instruction``, ``input`` (may be empty), ``chosen`` and ``rejected``. MODEL
was tuned on instructions. Needs the libraries of ``pip install 'fromscratch[hf]'``. DPO: Rafailov et al. 2023, "Direct
Preference Optimization".
"""

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import fromscratch

data, folder, source = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
learning_rate = float(sys.argv[4]) if len(sys.argv) > 4 else 1e-6

# 1. The model, as a folder that transformers loads. It knows the format of the prompts that it was tuned on.
base = fromscratch.load_model(source)
instruct = Path(base.publish(folder / "instruct").folder or "")
form = base.prompt_format
assert form is not None, f"{source} was not tuned on instructions: 'fromscratch finetune instruct' does it"

# 2. Pairs of answers: texts as the model will see them. A tenth is kept for measuring. trl adds the end of text.
pairs = [
    {"prompt": form.prompt(record["instruction"], record["input"])}
    | {name: record[name] + form.ending for name in ("chosen", "rejected")}
    for record in json.loads(data.read_text("utf-8"))
]
random.Random(1).shuffle(pairs)
held_out = len(pairs) // 10

# 3. Train: the chosen answers become more probable than the rejected ones, compared with the reference model.
tokenizer = AutoTokenizer.from_pretrained(instruct)
model, reference = (AutoModelForCausalLM.from_pretrained(instruct, trust_remote_code=True) for _ in range(2))
settings = DPOConfig(
    output_dir=str(folder / "trl"),
    num_train_epochs=1,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=8,
    learning_rate=learning_rate,
    beta=0.1,
    max_length=model.config.max_position_embeddings,
    bf16=torch.cuda.is_available(),  # processors without 16-bit instructions are slow at it
    eval_strategy="epoch",
    save_strategy="no",
    logging_steps=10,
    report_to="none",
    seed=1,
)
trainer = DPOTrainer(
    model=model,
    ref_model=reference,
    args=settings,
    train_dataset=Dataset.from_list(pairs[held_out:]),
    eval_dataset=Dataset.from_list(pairs[:held_out]),
    processing_class=tokenizer,
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
print(f"held-out loss {before['eval_loss']:.3f} -> {after['eval_loss']:.3f}")
print(f"chosen answer preferred in {after['eval_rewards/accuracies']:.0%} of {held_out} held-out pairs")

# 4. And back: the folder is a MODEL of every command. The prompt format is ours, so trl does not copy it.
preferred = folder / "preferred"
trainer.save_model(str(preferred))
shutil.copy(instruct / "prompt_format.json", preferred)
tuned = fromscratch.load_model(preferred)
for pair in pairs[:3]:
    print(f"{pair['prompt'].strip()}\n  -> {tuned.generate(pair['prompt'], max_new_tokens=40, temperature=0).strip()}")
