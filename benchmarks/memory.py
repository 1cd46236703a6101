"""Predicted and measured peak memory of training on this CPU, for three sizes of model.

    python benchmarks/memory.py [--out memory.json]

Prints a table; exits with 1 where a prediction is more than a tenth off.
"""

import argparse
import json
import sys
from pathlib import Path

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning.bench import Case, Measurement, Workload, run_worker
from fromscratch.planning.memory_model import forecast_memory

CASES = [  # preset, vocabulary, micro-batches
    ("laptop-small", 2_048, (8, 32)),
    ("laptop-medium", 8_192, (4, 16)),
    ("gpt2-small", 50_257, (1, 2)),
]
MAX_ERROR = 0.1


def main() -> int:
    """Compares all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    hardware, rows = find_hardware("cpu"), []
    process_bytes = hardware.peak_memory_bytes()
    train = TrainConfig(precision="fp32", global_batch=32)
    print(f"{'model':<14} {'micro-batch':>11} {'predicted MiB':>13} {'measured MiB':>12} {'ratio':>6}")
    for preset, vocab_size, micro_batches in CASES:
        workload = Workload(GPTConfig.model_validate({"preset": preset, "vocab_size": vocab_size}), train)
        forecast = forecast_memory(workload, "cpu", process_bytes=process_bytes)
        for micro_batch in micro_batches:
            measurement = Measurement(Case(micro_batch, train.precision))
            run_worker(workload, measurement, hardware, 1, max_seconds=1.0, as_memory_probe=True)
            if measurement.error is not None or not measurement.peak_memory_bytes:
                print(f"{preset}, micro-batch {micro_batch}: {measurement.error}")
                return 1
            predicted, measured = forecast.at(micro_batch).total, measurement.peak_memory_bytes
            rows.append({"model": preset, "micro_batch": micro_batch, "predicted": predicted, "measured": measured})
            sizes = f"{predicted / 2**20:>13,.0f} {measured / 2**20:>12,.0f} {predicted / measured:>6.3f}"
            print(f"{preset:<14} {micro_batch:>11} {sizes}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))
    return int(any(abs(row["predicted"] / row["measured"] - 1) > MAX_ERROR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
