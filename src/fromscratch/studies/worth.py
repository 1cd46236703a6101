"""What the effect of an arm is worth, and what a verdict about an undecided arm would take."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fromscratch.files import readable_dollars, readable_seconds
from fromscratch.studies.definition import CONTROL
from fromscratch.studies.forecasts import Forecast, Total, seeds_total
from fromscratch.studies.results import Judgement
from fromscratch.studies.verdicts import MAX_FURTHER_SEEDS, ArmResult, Verdict


@dataclass(frozen=True)
class Worth:
    """Of one arm; None means unknown."""

    share_of_training: float | None
    """The effect as a share of the baseline's training; above 0 is better."""
    dollars: float | None
    """That share of the price of a baseline run."""
    to_decide: Total | None
    """For an undecided arm: the further seeds of it and of the baseline that decide it."""


def worth_of(judgement: Judgement, arm: ArmResult, forecasts: Mapping[str, Forecast]) -> Worth:
    """Computes the worth of an arm."""
    share, price = judgement.share(arm.arm), forecasts[CONTROL].total.dollars
    return Worth(
        share_of_training=share,
        dollars=None if share is None or price is None else share * price,
        to_decide=None if arm.seeds_to_decide is None else seeds_total(arm.arm, arm.seeds_to_decide, forecasts),
    )


def dollars_saved(worth: Worth) -> str:
    """What an effect saves, above 0, or costs, as ``+$1.20``; ``-`` where there is no effect to value."""
    dollars = worth.dollars
    if dollars is None:
        return "-" if worth.share_of_training is None else "unknown"
    return f"{'-' if dollars < 0 else '+'}{readable_dollars(abs(dollars))}"


def why(arm: ArmResult, worth: Worth) -> str:
    """The reason of the verdict, and for an undecided arm what would decide it."""
    if arm.verdict != Verdict.UNDECIDED:
        return arm.reason
    if arm.seeds_to_decide is None or worth.to_decide is None:
        return f"{arm.reason}; more than {MAX_FURTHER_SEEDS:,} further seeds would be needed"
    seeds = f"{arm.seeds_to_decide} more seed{'s' if arm.seeds_to_decide > 1 else ''} of it and of the baseline"
    return f"{arm.reason}; about {seeds} would decide it ({in_words(worth.to_decide)})"


def in_words(total: Total) -> str:
    """Hours and dollars, as ``3.2 hours, $7.50``."""
    time = "hours unknown" if total.hours is None else readable_seconds(3600 * total.hours)
    return f"{time}, {'dollars unknown' if total.dollars is None else readable_dollars(total.dollars)}"


def to_dict(judgement: Judgement, forecasts: Mapping[str, Forecast]) -> dict[str, Any]:
    """The verdicts as JSON has them, with what each effect is worth."""
    values = asdict(judgement.result)
    arms = zip(values["arms"], judgement.result.arms, strict=True)
    return {**values, "arms": [{**row, **asdict(worth_of(judgement, arm, forecasts))} for row, arm in arms]}
