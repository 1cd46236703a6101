"""Requests to the Hub: tried several times, and answered with one sentence where they fail."""

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from fromscratch.errors import FromScratchError, UsageError

MAX_ATTEMPTS = 5
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 60.0
MAX_CONNECT_SECONDS = 1.5
PROXY_ANSWER_SECONDS = 0.6  # a slow proxy may reach the Hub
PROXY_HAS_NO_NETWORK = re.compile(rb"(HTTP/1\.\d 50\d|$)")  # or it hangs up
REFUSED_STATUS_CODES = {401, 403, 404}
TEMPORARY_STATUS_CODES = {None, 408, 425, 429, 500, 502, 503, 504}  # None: no answer, such as a lost connection

Result = TypeVar("Result")


class HubError(FromScratchError):
    """The Hub could not be reached, or failed; exit code 1."""


def ask_hub(what: str, request: Callable[[], Result], *, sleep: Callable[[float], None] = time.sleep) -> Result:
    """Returns the result of a request, which is tried up to 5 times.

    The wait doubles after each attempt, or is what the server's Retry-After asks for. Without a connection to the
    Hub the cache answers, at once.

    Args:
        what: begins every message: the repository or the file.

    Raises:
        UsageError: not found, no access, or offline and not in the cache. Nothing is tried again.
        HubError: the last attempt failed too.
    """
    if is_offline() and not _hub_constants().HF_HUB_OFFLINE:
        return _answer_from_cache(what, request)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return request()
        except FromScratchError:
            raise
        except Exception as error:
            if refusal := _refusal(what, error):
                raise refusal from None
            if attempt == MAX_ATTEMPTS or _status_of(error) not in TEMPORARY_STATUS_CODES:
                raise HubError(f"{what}: failed after {attempt} attempts ({_reason(error)}); try again later") from None
            sleep(_wait_seconds(error, attempt))
    raise AssertionError("unreachable")


def is_offline(max_seconds: float = MAX_CONNECT_SECONDS) -> bool:
    """Whether the Hub must not be asked (HF_HUB_OFFLINE), or accepts no connection in that time.

    Where a proxy makes the connections, that is asked for one. Only errors of the network (502, 503, 504) count as no
    connection: any other refusal may be a matter of credentials.
    """
    constants = _hub_constants()
    if constants.HF_HUB_OFFLINE:
        return True
    if constants.ENDPOINT in _reached:
        return False

    def connect() -> None:
        with suppress(OSError):
            if _can_connect(urlsplit(constants.ENDPOINT)):
                _reached.add(constants.ENDPOINT)

    thread = threading.Thread(target=connect, daemon=True)  # looking the name up has no timeout of its own
    thread.start()
    thread.join(max_seconds)
    return constants.ENDPOINT not in _reached


def _can_connect(hub: SplitResult) -> bool:
    """Connects to the Hub, or to the proxy and through it. Raises OSError where nothing answers."""
    host, port = _place(hub)
    proxies = {} if proxy_bypass(host) else getproxies()
    named = proxies.get(hub.scheme) or proxies.get("all")
    proxy = urlsplit(named if "://" in named else f"http://{named}") if named else None
    with socket.create_connection(_place(proxy or hub), timeout=MAX_CONNECT_SECONDS) as connection:
        if proxy is None or proxy.scheme != "http" or hub.scheme != "https":
            return True
        connection.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        connection.settimeout(PROXY_ANSWER_SECONDS)
        with suppress(TimeoutError):
            return not PROXY_HAS_NO_NETWORK.match(connection.recv(16))
        return True


def _place(address: SplitResult) -> tuple[str, int]:
    port = {"http": 80, "socks5": 1080, "socks5h": 1080}.get(address.scheme, 443)
    return address.hostname or "", address.port or port


_reached: set[str] = set()
"""Endpoints that have accepted a connection of this process."""


def _answer_from_cache(what: str, request: Callable[[], Result]) -> Result:
    """The result of a request that may look into the cache only. Raises HubError."""
    constants = _hub_constants()
    try:
        with _hub_offline():
            return request()
    except FromScratchError:
        raise
    except Exception:
        raise HubError(
            f"{what}: no connection to {constants.ENDPOINT}, and not in the cache {constants.HF_HUB_CACHE}"
        ) from None


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Inside, ``huggingface_hub`` makes no connection; it would retry for minutes."""
    constants = _hub_constants()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _hub_constants() -> Any:
    from huggingface_hub import constants

    return constants


def _status_of(error: Exception) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _refusal(what: str, error: Exception) -> UsageError | None:
    """Returns what the user must change before another attempt makes sense; None where the Hub merely failed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    if isinstance(error, HFValidationError):
        return UsageError(f"{what}: not a name that the Hub allows ({error})")
    if isinstance(error, LocalTokenNotFoundError):
        return UsageError(f"{what}: needs a token; log in with 'hf auth login', or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        return UsageError(
            f"{what}: not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids asking the Hub; "
            "unset it, or fill the cache first"
        )
    status = _status_of(error)
    if status in REFUSED_STATUS_CODES:
        return UsageError(
            f"{what}: the Hub answered {status}: no such repository, revision or file, or no access to it; check the "
            "name, and the token in HF_TOKEN (or 'hf auth login')"
        )
    return None


def _reason(error: Exception) -> str:
    """Says what failed without the address that was asked, which may be signed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if status := _status_of(error):
        return f"the Hub answered {status}"
    if isinstance(error, LocalEntryNotFoundError | ConnectionError) or "httpx" in type(error).__module__:
        return f"no connection to {constants.ENDPOINT}: {type(error).__name__}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no details'}"


def _wait_seconds(error: Exception, attempt: int) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    return min(wait_seconds(headers.get("Retry-After", ""), attempt), MAX_WAIT_SECONDS)


def wait_seconds(retry_after: str, attempt: int) -> float:
    """Returns what a Retry-After header asks for (RFC 9110: seconds or a date), not limited.

    Without one, returns twice as long as after the attempt before, within 20%, and at most 60 s.
    """
    if re.fullmatch(r"\d+(\.\d+)?", retry_after, re.ASCII):
        return float(retry_after)
    with suppress(ValueError, TypeError):  # no date, or one without a time zone
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return min(FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.8, 1.2), MAX_WAIT_SECONDS)
