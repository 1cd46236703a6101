"""``fromscratch eval``: evaluates trained models."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, ModelArgument, Processes
from fromscratch.cli.output import note, print_json, print_table

StoreOption = Annotated[
    str | None,
    typer.Option(help="The token store: a folder, or hf://owner/name; by default the one that the run evaluates on."),
]

SplitOption = Annotated[
    str | None,
    typer.Option(
        help="The split of the store; by default validation, or lanes: the ends of the lanes that a recurrent run held "
        "out."
    ),
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Evaluate a trained model.")


@app.command()
def loss(
    model: ModelArgument,
    store: StoreOption = None,
    split: SplitOption = None,
    start: Annotated[int, typer.Option(min=0, help="First token of the slice.")] = 0,
    tokens: Annotated[int | None, typer.Option(min=1, help="Number of tokens to predict; by default all.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences per batch; changes only the speed.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")] = "fp32",
    processes: Processes = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compute loss, perplexity and bits per byte on a slice of a store.

    Example: fromscratch eval loss runs/baseline --tokens 100000
    """
    from fromscratch.api import load_model
    from fromscratch.formats.model_sources import locate
    from fromscratch.formats.stores import held_out_store_of, open_named_store
    from fromscratch.machine.precision import check_precision
    from fromscratch.processes.launcher import is_launched, launch_measurement
    from fromscratch.processes.world import joined_world
    from fromscratch.session.evaluated import default_split

    check_precision(precision)
    if processes is not None and processes > 1 and not is_launched():
        locate(model)  # reports a wrong name once, before processes start
        if store is not None:
            open_named_store(store)
        raise typer.Exit(launch_measurement(sys.argv[1:], processes=processes))
    loaded = load_model(model, device=device)
    store, split = store or held_out_store_of(loaded.loaded), split or default_split(loaded.loaded)
    values: dict[str, Any] = {"store": store, "split": split, "start": start, "precision": precision}
    with joined_world(loaded.hardware.device) as world:
        report = loaded.evaluate(**values, tokens=tokens, batch=batch, world=world)
    if not world.is_main:
        return
    output = {"model": model, "step": loaded.loaded.step, **values, **asdict(report)}
    if as_json:
        print_json(output)
    else:
        print_table([(name.replace("_", " "), value) for name, value in output.items()])


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model: see MODEL of 'eval loss'.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another model, with the same tokenizer and context.")],
    store: StoreOption = None,
    split: SplitOption = None,
    start: Annotated[int, typer.Option(min=0, help="First token of the slice.")] = 0,
    tokens: Annotated[int | None, typer.Option(min=1, help="Number of tokens to predict; by default all.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences per batch; changes only the speed.")] = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare two models on the same text: paired loss difference, its interval, the most different documents.

    The interval covers the choice of the text, not the choice of the training seed.

    Example: fromscratch eval compare runs/baseline runs/no-dropout
    """
    from fromscratch.evaluation.compare import compare_models
    from fromscratch.evaluation.saving import save_evaluation
    from fromscratch.formats.model_sources import open_model
    from fromscratch.formats.stores import held_out_store_of, open_named_store
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.session.evaluated import default_split, part_held_out_by_both

    hardware = find_hardware(device)
    first, second = open_model(a, hardware), open_model(b, hardware)
    store, split = store or held_out_store_of(first), split or default_split(first)
    part = part_held_out_by_both(first, second, open_named_store(store), split, start=start, tokens=tokens)
    comparison = compare_models(first, second, part, hardware, batch=batch)
    asked = {"a": a, "b": b, "store": store, "split": split, "start": start, "tokens": part.tokens}
    output = asked | {"verdict": comparison.verdict, "comparison": asdict(comparison)}
    for one, other in ((first, second), (second, first)):
        name = f"compare-step-{one.step}-with-{other.name}"
        save_evaluation(one, name, {"measure": "compare", **output}, question=tuple(asked))
    if first.run is not None and second.run is not None:
        note(
            "notice: one run each is no evidence for a change: the interval covers the choice of the text, and two "
            "seeds of one config differ too; repeat both with several seeds"
        )
    if as_json:
        print_json(output)
        return
    print_table(
        [
            (f"loss of A ({a})", comparison.a.loss),
            (f"loss of B ({b})", comparison.b.loss),
            ("B - A, nats per token", comparison.difference),
            ("95% interval, low", comparison.low),
            ("95% interval, high", comparison.high),
            ("verdict", comparison.verdict),
        ]
    )
    print("\nmost different documents (B - A, nats per token):")
    for document in comparison.documents:
        print(f"{document.difference:+8.4f}  {document.text!r}")


@app.command()
def smoke(
    model: ModelArgument,
    tokens: Annotated[int, typer.Option("--tokens", "--max-new-tokens", min=1, help="New tokens per prompt.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the sampled texts.")] = 0,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue a few fixed prompts, by greedy decoding and by sampling.

    Example: fromscratch eval smoke runs/baseline
    """
    from fromscratch.evaluation.saving import save_evaluation
    from fromscratch.evaluation.smoke import smoke_test
    from fromscratch.formats.model_sources import open_model
    from fromscratch.machine.hardware import find_hardware

    loaded = open_model(model, find_hardware(device))
    texts = [asdict(text) for text in smoke_test(loaded, seed=seed, tokens=tokens)]
    values = {"measure": "smoke", "model": model, "seed": seed, "tokens": tokens, "texts": texts}
    save_evaluation(loaded, f"smoke-step-{loaded.step}", values, question=("seed", "tokens"))
    if as_json:
        print_json({"step": loaded.step, **values})
        return
    for text in texts:
        print_table([("prompt", text["prompt"]), ("greedy", repr(text["greedy"])), ("sampled", repr(text["sampled"]))])
        print()


@app.command()
def injection(
    model: ModelArgument,
    template: Annotated[str, typer.Option(help="transcript, alpaca, or a TOML file: see 'chat'.")] = "transcript",
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how often a model mistakes a transcript inside one message for the real conversation.

    Example: fromscratch eval injection gpt2 --template transcript
    """
    from fromscratch.evaluation.injection import measure_injection
    from fromscratch.evaluation.saving import save_evaluation
    from fromscratch.formats.model_sources import open_model
    from fromscratch.generation.conversation import open_template
    from fromscratch.machine.hardware import find_hardware

    chosen = open_template(template)
    loaded = open_model(model, find_hardware(device))
    report = measure_injection(loaded, chosen)
    values = {
        "measure": "injection",
        "model": model,
        "template": template,
        "smuggled": report.smuggled.to_dict(),
        "control": report.control.to_dict(),
        "answers": report.answers,
    }
    save_evaluation(loaded, f"injection-step-{loaded.step}", values, question=("template",))
    if as_json:
        print_json({"step": loaded.step, **values})
        return
    for name, rate in (("smuggled", report.smuggled), ("control", report.control)):
        low, high = rate.interval()
        print(f"{name:<9} {rate.count} of {rate.trials}: {rate.fraction:.0%} (95% interval {low:.0%} to {high:.0%})")


@app.command()
def harness(
    model: ModelArgument,
    tasks: Annotated[str, typer.Option(help="Names of tasks, separated by commas.")],
    include: Annotated[Path | None, typer.Option(help="A folder of your own task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples per task; by default all.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples per batch.")] = 8,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run tasks of lm-evaluation-harness (needs the extra 'eval').

    Example: fromscratch eval harness runs/baseline --tasks lambada_openai,hellaswag --limit 200
    """
    import tempfile

    from fromscratch.evaluation.harness import run_harness
    from fromscratch.evaluation.saving import save_evaluation
    from fromscratch.formats.model_sources import open_model
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.publishing.card import CardSettings
    from fromscratch.publishing.export import choose_format, export_model

    hardware = find_hardware(device)
    loaded = open_model(model, find_hardware("cpu"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        export_model(loaded, folder, format_name=choose_format(loaded.config, None), card=CardSettings())
        results = run_harness(
            folder, tasks.split(","), device=str(hardware.device), include=include, limit=limit, batch=batch
        )
    values = {"measure": "harness", "model": model, "tasks": tasks.split(","), "limit": limit, "results": results}
    save_evaluation(loaded, f"harness-step-{loaded.step}", values, question=("tasks", "limit"))
    if as_json:
        print_json({"step": loaded.step, **values})
        return
    print_table([(f"{task} {name}", value) for task, found in results.items() for name, value in found.items()])
