"""GPT-2's table of 256 printable characters, in which byte-level BPE files spell bytes.

Printable bytes stand for themselves. The other 68 are shifted to U+0100 and above, so a vocabulary
file holds no blank or control character. Source: the encoder of Radford et al. 2019.
"""

from functools import cache


@cache
def byte_of_character() -> dict[str, int]:
    """Returns the byte of each of the 256 characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


def bytes_of_token(token: str) -> bytes:
    """Returns the bytes of a token of a byte-level vocabulary. Raises KeyError for any other token."""
    table = byte_of_character()
    return bytes(table[character] for character in token)
