"""Names of repositories on the Hub: ``hf://owner/name[@revision][?key=value&...]``."""

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from fromscratch.errors import UsageError

HUB_PREFIX = "hf://"
REVISION = "revision"
NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub, and what its name asks of it."""

    kind: str
    """``model`` or ``dataset``."""
    repository: str
    """``owner/name``."""
    parameters: dict[str, str] = field(default_factory=dict)
    """The revision is one of them, however it was written."""

    @property
    def revision(self) -> str:
        return self.parameters.get(REVISION, "main")

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}"


def has_hub_prefix(text: str) -> bool:
    """Returns whether a text begins with ``hf://``, or with ``hf:/`` as ``Path`` shortens it."""
    return text.startswith(HUB_PREFIX[:-1])


def dataset_name(text: str, *, allowed: tuple[str, ...] = ()) -> HubName:
    """Parses the name of a dataset. Raises UsageError.

    Args:
        allowed: the parameters that have a meaning here. ``@main`` is short for ``?revision=main``.
    """
    path, _, query = re.sub(r"^hf:/+(datasets/)?", "", text).partition("?")
    found = NAME.fullmatch(path.rstrip("/"))
    if found is None:
        raise UsageError(f"{text}: not a dataset on the Hub; write it as hf://owner/name")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    if found.group(2):
        parameters[REVISION] = found.group(2)
    unknown = sorted(set(parameters) - set(allowed))
    if unknown:
        known = ", ".join(allowed) or "none"
        raise UsageError(f"{text}: unknown parameter '{unknown[0]}'; known parameters: {known}")
    return HubName("dataset", found.group(1), parameters)


def model_name(text: str) -> HubName | None:
    """Parses ``[hf://]owner/name[@revision]``; returns None where the text is no such name."""
    found = NAME.fullmatch(text.removeprefix(HUB_PREFIX))
    return found and HubName("model", found.group(1), {REVISION: found.group(2)} if found.group(2) else {})
