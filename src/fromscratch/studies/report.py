"""The report of a study: Markdown, and one self-contained HTML page with pictures."""

import base64
import html
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from fromscratch.files import readable_seconds, to_strict_json, write_atomically
from fromscratch.runs.costs import cost_of
from fromscratch.studies.definition import CONTROL
from fromscratch.studies.forecasts import Forecast
from fromscratch.studies.jobs import StudyFolder
from fromscratch.studies.past import finding_of, keep_finding
from fromscratch.studies.pictures import evidence_over_time, forest_plot, loss_curves
from fromscratch.studies.power import smallest_detectable_effect
from fromscratch.studies.prices import Prices
from fromscratch.studies.results import Judgement, arm_jobs, held_out_name, outcomes_of, sums_of_members
from fromscratch.studies.verdicts import ArmResult
from fromscratch.studies.worth import Worth, dollars_saved, why, worth_of

REPORT = "report"
HEADS = ("effect", "interval", "p", "verdict", "of the training", "in dollars", "shrunken", "time")
STYLE = """\
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff }
p, ul { max-width: 56rem } ul { padding-left: 1.2rem } li { margin: 0.2rem 0; overflow-wrap: anywhere }
.scroll { overflow-x: auto } figure { margin: 1.5rem 0; max-width: 56rem } figcaption { font-size: 0.85rem }
img { width: 100%; display: block; background: #fff }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #8886; padding: 0.3rem 0.5rem; text-align: left; white-space: nowrap }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff }
@media (prefers-color-scheme: dark) {
  body, th:first-child, td:first-child { color: #e6e6e6; background: #161616 }
  img { filter: invert(0.91) hue-rotate(180deg) }
}
"""


def write_report(
    folder: StudyFolder, judgement: Judgement, *, measured_on: str, dollars_per_hour: float | None
) -> Path:
    """Writes ``report.md``, ``report.html``, ``report.json`` and the pictures; returns the path of the page."""
    pictures = {
        "effects": forest_plot(judgement),
        "evidence": evidence_over_time(folder, judgement),
        "loss-curves": loss_curves(folder),
    }
    forecasts = Prices(folder, dollars_per_hour=dollars_per_hour).forecasts()
    blocks = list(_blocks(folder, judgement, measured_on, dollars_per_hour, forecasts))
    for name, image in pictures.items():
        write_atomically(folder.path / f"{REPORT}-{name}.png", image)
    write_atomically(folder.path / f"{REPORT}.md", "\n\n".join(_markdown(block) for block in blocks) + "\n")
    page = folder.path / f"{REPORT}.html"
    write_atomically(page, _page(folder.study.name, blocks, pictures))
    text = to_strict_json(finding_of(folder, judgement, forecasts, measured_on=measured_on), indent=1)
    write_atomically(folder.path / f"{REPORT}.json", text)
    keep_finding(folder.study, text)
    return page


Block = tuple[str, Any]
"""A kind (title, text, list, table, picture) and its content."""


def _blocks(
    folder: StudyFolder,
    judgement: Judgement,
    measured_on: str,
    price: float | None,
    forecasts: Mapping[str, Forecast],
) -> Iterator[Block]:
    worth = {arm.arm: worth_of(judgement, arm, forecasts) for arm in judgement.result.arms}
    study, result = folder.study, judgement.result
    yield "title", f"Study: {study.name}"
    yield "text", _summary(folder, judgement, measured_on)
    yield "list", [f"{arm.arm}: {arm.verdict}. {_sentence(why(arm, worth[arm.arm]))}" for arm in result.arms]
    yield from (("text", f"Warning: {warning}.") for warning in (*result.warnings, *_code_warnings(folder)))
    yield "picture", ("effects", "Effect of each arm (diamond), its interval, and each run's difference (dots)")
    heads = ("arm", "runs", f"mean {result.measure.name}", *HEADS)
    yield "table", (heads, [_row(folder, arm, worth[arm.arm], price) for arm in result.arms])
    yield "text", _what_could_be_seen(judgement, folder.study.config.alpha)
    yield "picture", ("evidence", "Evidence after each round of seeds")
    yield (
        "picture",
        ("loss-curves", "Held-out loss minus the baseline's at the same share of training, with the range of seeds"),
    )
    if sums := sums_of_members(folder, judgement):
        yield "text", "Stacks, and whether their members add up:"
        yield "list", [_stack_sentence(judgement, name, total) for name, total in sums.items()]
    yield "text", "What each arm changes, computed from the resolved configs:"
    yield "list", [f"{arm.name}: {'; '.join(arm.changes) or 'nothing (other seeds)'}" for arm in study.arms]
    if events := [f"{arm.name}: {found}" for arm in study.all_arms if (found := _outcomes(folder, arm.name))]:
        yield "text", "Steps that were not normal:"
        yield "list", events
    yield "text", _openings(folder)


def _summary(folder: StudyFolder, judgement: Judgement, measured_on: str) -> str:
    control, config, measure = judgement.result.control, folder.study.config, judgement.result.measure
    runs = [control, *(arm.runs for arm in judgement.result.arms)]
    total = sum(len(one.seeds) for one in runs)
    done, diverged = total - sum(len(one.missing) for one in runs), sum(len(one.diverged) for one in runs)
    lost = f", {diverged} of them diverged or stopped by the rule: they have no {measure.name}" if diverged else ""
    kept = f"{fmean(control.losses.values()):.4f} ({measure.scale})" if control.losses else "unknown"
    borrowed = judgement.result.borrowed
    from_registry = (
        f" The spread between seeds is borrowed from other studies too ({measure.amount(borrowed.standard_deviation)}, "
        f"{borrowed.df:.0f} degrees of freedom)."
        if borrowed
        else ""
    )
    side = "higher" if measure.higher_is_better else "lower"
    return (
        f"{done} of {total} runs have ended{lost}. The baseline's mean {measure.name} on the {measured_on} is {kept} "
        f"over {len(control.losses)} runs; {side} is better. Design: {config.design}, {judgement.result.correction}'s "
        f"correction over {len(folder.study.arms)} arms, alpha {config.alpha:g}. Effects below "
        f"{measure.amount(judgement.margin)} do not matter here.{from_registry}"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _row(folder: StudyFolder, arm: ArmResult, worth: Worth, price: float | None) -> tuple[str, ...]:
    losses, share = list(arm.runs.losses.values()), worth.share_of_training
    counts = f"{len(losses)} of {len(arm.runs.seeds)}"
    if arm.runs.diverged:
        counts += f", {len(arm.runs.diverged)} diverged or stopped"
    evidence = arm.evidence
    return (
        arm.arm,
        counts,
        f"{math.fsum(losses) / len(losses):.4f}" if losses else "-",
        "-" if arm.effect is None else f"{arm.effect:+.4f}",
        "-" if evidence is None else evidence.interval,
        "-" if evidence is None else f"{evidence.p_different:.2g}",
        str(arm.verdict),
        "-" if share is None else f"{share:+.1%}",
        dollars_saved(worth),
        "-" if arm.shrunken is None else f"{arm.shrunken:+.4f}",
        _cost(folder, arm.arm, price),
    )


def _cost(folder: StudyFolder, arm: str, price: float | None) -> str:
    """Time of an arm's runs, and dollars where the price of each is known."""
    runs = [run for job in arm_jobs(folder, arm) for run in job.stages if run.exists()]
    costs = [cost_of(run, dollars_per_hour=price) for run in runs]
    time, dollars = readable_seconds(math.fsum(one.total_seconds for one in costs)), [one.dollars for one in costs]
    known = [one for one in dollars if one is not None]
    return f"{time}, ${math.fsum(known):,.2f}" if known and len(known) == len(dollars) else time


def _what_could_be_seen(judgement: Judgement, alpha: float) -> str:
    """What the study could not have seen: the smallest effect of one arm that it finds four times out of five."""
    arm = next((one for one in judgement.result.arms if one.spread is not None and one.runs.losses), None)
    if arm is None or arm.spread is None:
        return "No spread is known yet: every arm needs a second seed, or the registry an entry for this setting."
    effect = smallest_detectable_effect(
        len(arm.runs.losses),
        arm.spread,
        design=judgement.result.design,
        alpha=alpha / len(judgement.result.arms),  # the first step of the correction
        control_ratio=_ratio(judgement, arm),
    )
    amount, df = judgement.result.measure.amount, arm.spread.df
    spread = f"The spread between seeds is {amount(arm.spread.standard_deviation)} ({df:.0f} degrees of freedom)."
    if effect is None:
        return f"{spread} With {len(arm.runs.losses)} seeds, hardly any effect would be found: add seeds."
    return f"{spread} With {len(arm.runs.losses)} seeds, effects of {amount(effect)} are found four times out of five."


def _ratio(judgement: Judgement, arm: ArmResult) -> float:
    return max(1.0, len(judgement.result.control.losses) / max(1, len(arm.runs.losses)))


def _stack_sentence(judgement: Judgement, name: str, total: float) -> str:
    effect = next(one.effect for one in judgement.result.arms if one.arm == name)
    if effect is None:
        return f"{name}: no effect is known yet; those of its members sum to {total:+.4f}"
    together = judgement.result.measure.effect(effect)
    return f"{name}: {together} together; its members sum to {total:+.4f} ({effect - total:+.4f} beyond the sum)"


def _outcomes(folder: StudyFolder, arm: str) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in outcomes_of(folder, arm).items() if name != "normal")


def _code_warnings(folder: StudyFolder) -> list[str]:
    """Arms whose runs were made by other code than the baseline's."""
    hashes = {
        arm.name: {code for job in arm_jobs(folder, arm.name) if (code := job.code)} for arm in folder.study.all_arms
    }
    expected = hashes[CONTROL]
    changed = [name for name, found in hashes.items() if found - expected or len(found) > 1]
    return [f"other code computed some runs of {', '.join(changed)}"] if changed and expected else []


def _openings(folder: StudyFolder) -> str:
    record = folder.read()
    openings, noise = record.get("openings", []), record.get("test_noise")
    if not openings:
        return f"The test set is sealed: these figures are of the {held_out_name(folder.study)}."
    times = "; ".join(f"{one['at']} ({len(one['runs'])} runs)" for one in openings)
    uncertain = f" Other texts of this kind would change an effect by {noise:.4f} nats (one sigma)." if noise else ""
    return f"The test set was opened {len(openings)} time{'s' if len(openings) > 1 else ''}: {times}.{uncertain}"


def _markdown(block: Block) -> str:
    kind, content = block
    if kind == "title":
        return f"# {content}"
    if kind == "list":
        return "\n".join(f"- {item}" for item in content)
    if kind == "table":
        heads, rows = content
        lines = [heads, ["---"] * len(heads), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if kind == "picture":
        return f"![{content[1]}]({REPORT}-{content[0]}.png)"
    return str(content)


def _page(title: str, blocks: list[Block], pictures: dict[str, bytes]) -> str:
    body = "\n".join(_html(block, pictures) for block in blocks)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def _html(block: Block, pictures: dict[str, bytes]) -> str:
    kind, content = block
    if kind == "title":
        return f"<h1>{html.escape(content)}</h1>"
    if kind == "list":
        return "<ul>" + "".join(f"<li>{_with_bold_name(item)}</li>" for item in content) + "</ul>"
    if kind == "table":
        heads, rows = content
        cells = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
        cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        return '<div class="scroll"><table>' + "".join(f"<tr>{row}</tr>" for row in cells) + "</table></div>"
    if kind == "picture":
        data = base64.b64encode(pictures[content[0]]).decode()
        caption = html.escape(content[1])
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    return f"<p>{html.escape(content)}</p>"


def _with_bold_name(item: str) -> str:
    """The HTML of a list item that begins with the name of an arm."""
    name, colon, rest = item.partition(": ")
    return f"<b>{html.escape(name)}</b>{colon}{html.escape(rest.replace(' -> ', ' → '))}"
