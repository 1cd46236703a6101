"""How the processes of a run meet, in torchrun's store.

The store outlives the processes where torchrun restarts them, and what gloo left there would lead the
new ones to addresses of the dead (seen in torch 2.13: restarts never connect). So every start agrees
on a name of its own for all it keeps there. Each process says hello with a word that it has just made
up; the main one names the session after all the words, and again whenever one of them changes, until
every process has answered to that name.
"""

import hashlib
import json
import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from fromscratch.errors import FromScratchError

SECONDS_BETWEEN_LOOKS = 0.02
NAME, AGREED = "session", "agreed"


def meet(timeout: timedelta) -> tuple[Store, int, int]:
    """A store that the processes of this start alone share, the rank of this one, and their number.

    Reads torchrun's environment (``MASTER_ADDR``, ``MASTER_PORT``, ``RANK``, ``WORLD_SIZE``).

    Raises:
        FromScratchError: not all came in time.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    word = uuid.uuid4().hex
    store.set(f"hello/{rank}", word)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        if rank == 0:
            _name_session(store, size)
        session = _session_of(store, rank, word)
        if session and store.check([f"{session}/{AGREED}"]):
            return PrefixStore(session, store), rank, size
        time.sleep(SECONDS_BETWEEN_LOOKS)
    raise FromScratchError(
        f"rank {rank}: the {size} processes did not come together within {timeout.total_seconds():.0f} s; look at the "
        "output of the others, and whether their machines reach one another"
    )


def _name_session(store: Store, size: int) -> None:
    """Names the session after everybody's word, and says so once everybody has answered to it."""
    hellos = [f"hello/{rank}" for rank in range(size)]
    if not store.check(hellos):
        return
    words = [store.get(key).decode() for key in hellos]
    store.set(NAME, json.dumps(words))
    session = _name_of(words)
    if store.check([f"{session}/answer/{rank}" for rank in range(1, size)]):
        store.set(f"{session}/{AGREED}", "")


def _session_of(store: Store, rank: int, word: str) -> str:
    """The session that counts this process in, answered to; empty where there is none yet."""
    if not store.check([NAME]):
        return ""
    words = json.loads(store.get(NAME))
    if rank >= len(words) or words[rank] != word:
        return ""
    session = _name_of(words)
    store.set(f"{session}/answer/{rank}", "")
    return session


def _name_of(words: list[str]) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
