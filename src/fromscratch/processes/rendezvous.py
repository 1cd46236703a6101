"""A store that only the workers of one start share.

torchrun keeps one store for all restarts. gloo leaves addresses there, and restarted workers would connect to those of
workers that ended (torch 2.13, ``--max-restarts``). ``TORCHELASTIC_RESTART_COUNT`` cannot tell the starts apart: only
the agent whose worker failed counts a restart, so the counts of several machines differ. So rank 0 chooses a random
session name at every start and sends it to the ranks that request it.
"""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from fromscratch.errors import FromScratchError

POLL_SECONDS = 0.02


def session_store(timeout: timedelta) -> tuple[Store, int, int]:
    """The store of this start, the rank of this process, and the number of processes.

    Reads torchrun's environment (``MASTER_ADDR``, ``MASTER_PORT``, ``RANK``, ``WORLD_SIZE``).

    Raises:
        FromScratchError: a rank did not join within the timeout.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        nonce = uuid.uuid4().hex
        if rank == 0:
            session = nonce
            _send_session(store, session, set(range(1, size)), timeout)
        else:
            store.set(f"request/{rank}", nonce)
            session = store.get(f"session/{nonce}").decode()  # waits for rank 0
            store.set(f"{session}/joined/{rank}", "")
    except dist.DistError as error:
        raise FromScratchError(
            f"rank {os.environ['RANK']}: not all {os.environ['WORLD_SIZE']} processes joined within "
            f"{timeout.total_seconds():.0f} s ({str(error).splitlines()[0]}); look at the output of the others, and "
            "check that their machines reach one another"
        ) from error
    return PrefixStore(session, store), rank, size


def _send_session(store: Store, session: str, missing: set[int], timeout: timedelta) -> None:
    """Answers requests until every missing rank has joined. A request of an earlier start is answered in vain."""
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"no request from rank {', '.join(map(str, sorted(missing)))}")
        for rank in missing:
            if store.check([f"request/{rank}"]):
                store.set(f"session/{store.get(f'request/{rank}').decode()}", session)
        time.sleep(POLL_SECONDS)
        missing = {rank for rank in missing if not store.check([f"{session}/joined/{rank}"])}
