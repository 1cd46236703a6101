"""``cost.json``: the seconds of a run by purpose, one record per session, and what they cost."""

from dataclasses import dataclass, field
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import last_record, read_records, to_count, to_float

PURPOSES = ("set_up", "compilation", "training", "evaluation", "checkpoints", "other")
"""``other`` is the rest of a session: samples, records, charts."""


@dataclass(frozen=True)
class SessionCost:
    """One session of a run: from the command until training ended."""

    began_at: str
    """ISO 8601, UTC."""
    device_name: str
    devices: int
    first_step: int
    """Steps taken before the session."""
    last_step: int
    seconds: dict[str, float]
    """By purpose; see ``PURPOSES``."""
    dollars_per_hour: float | None = None
    """Price of all machines of the session together; None if it was not given."""


@dataclass(frozen=True)
class RunCost:
    """What a run has cost; None means unknown."""

    name: str
    is_complete: bool
    """Whether set-up, evaluations and saves are included; runs of earlier versions recorded training alone."""
    sessions: list[SessionCost]
    tokens: int | None
    """Tokens that the run has trained on; steps that a resume repeated count once."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By purpose, over all sessions."""
    total_seconds: float = 0.0
    dollars: float | None = None
    dollars_without_evaluation: float | None = None
    dollars_per_million_tokens: float | None = None
    dollars_per_million_tokens_without_evaluation: float | None = None


def read_sessions(run: RunDirectory) -> list[SessionCost]:
    """Reads the sessions of ``cost.json``; none without the file. Raises DataError if it is damaged."""
    if not run.cost.is_file():
        return []
    sessions = read_json_object(run.cost).get("sessions")
    if not isinstance(sessions, list):
        raise DataError(f"{run.cost}: malformed, it has no list of sessions")
    return [_parse(session, run) for session in sessions]


def _parse(values: Any, run: RunDirectory) -> SessionCost:
    try:
        session = SessionCost(**values)
        seconds = {purpose: to_float(session.seconds.get(purpose, 0.0)) for purpose in PURPOSES}
        price = session.dollars_per_hour
        if None not in seconds.values() and (price is None or to_float(price) is not None):
            return session
    except (TypeError, AttributeError):
        pass
    raise DataError(f"{run.cost}: malformed, a session is not as this version writes it")


def cost_of(run: RunDirectory, *, dollars_per_hour: float | None = None) -> RunCost:
    """Adds the sessions of a run up.

    Args:
        dollars_per_hour: price to use for all sessions; None takes the one that each session recorded.

    Raises:
        DataError: ``cost.json`` is damaged.
    """
    sessions, is_complete = read_sessions(run), run.cost.is_file()
    if not is_complete:
        sessions = [_training_alone(run)]
    seconds = {purpose: sum(one.seconds.get(purpose, 0.0) for one in sessions) for purpose in PURPOSES}
    tokens = to_count(last_record(run.metrics).get("tokens"))
    dollars = _dollars(sessions, dollars_per_hour)
    without = _dollars(sessions, dollars_per_hour, without=("evaluation",))
    return RunCost(
        name=run.name,
        is_complete=is_complete,
        sessions=sessions if is_complete else [],
        tokens=tokens,
        seconds=seconds,
        total_seconds=sum(seconds.values()),
        dollars=dollars,
        dollars_without_evaluation=without,
        dollars_per_million_tokens=_per_million(dollars, tokens),
        dollars_per_million_tokens_without_evaluation=_per_million(without, tokens),
    )


def _training_alone(run: RunDirectory) -> SessionCost:
    """Returns what the metrics know of a run of an earlier version."""
    steps = list(read_records(run.metrics))
    seconds = sum(to_float(record.get("seconds")) or 0.0 for record in steps)
    return SessionCost("", "", 1, 0, len(steps), {"training": seconds})


def _dollars(
    sessions: list[SessionCost], dollars_per_hour: float | None, without: tuple[str, ...] = ()
) -> float | None:
    total = 0.0
    for session in sessions:
        price = session.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        if price is None:
            return None
        total += price / 3600 * sum(s for purpose, s in session.seconds.items() if purpose not in without)
    return total


def _per_million(dollars: float | None, tokens: int | None) -> float | None:
    return None if dollars is None or not tokens else dollars / tokens * 1e6
