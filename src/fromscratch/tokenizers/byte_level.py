"""How byte-level BPE files spell bytes: GPT-2's table of 256 printable characters.

Bytes that are printable stand for themselves; the other 68 are shifted to U+0100 and above, so that
a vocabulary file holds no blank or control character. Source: the encoder of Radford et al. 2019.
"""

from functools import cache


@cache
def byte_of_character() -> dict[str, int]:
    """The byte that each of the 256 characters stands for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


def bytes_of_token(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for. Raises KeyError if it is none."""
    table = byte_of_character()
    return bytes(table[character] for character in token)
