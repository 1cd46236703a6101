"""Named, seeded random streams: one run seed, and a stream of its own for every purpose.

A stream is named by words and numbers, for example ``derive_seed(42, "dropout", step, sequence)``.
Nothing draws from a global generator, so no purpose can disturb another.
"""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on every part of the name, spread evenly by a hash (BLAKE2b)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
