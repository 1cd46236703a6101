"""Named random streams: every purpose has its own stream, derived from the seed of the run.

Strings and numbers name a stream, for example ``derive_seed(42, "dropout", step, sequence)``.
No code draws from a global generator. So the numbers of one purpose do not depend on another purpose.
"""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """Returns a 63-bit seed: a hash (BLAKE2b) of the run seed and every part of the name."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
