"""Whether a file is one frame of Zstandard and nothing else, which its decoders do not all say."""

from __future__ import annotations

_MAGIC = (0xFD2FB528).to_bytes(4, "little")
#: Bytes of a dictionary's number and of the content's size, by their flags in the descriptor.
_DICTIONARY = (0, 1, 2, 4)
_SIZE = (0, 2, 4, 8)


def is_whole_zstd(data: bytes) -> bool:
    """Whether ``data`` is as long as the blocks of the frame that it begins with (RFC 8878)."""
    if len(data) < 5 or data[:4] != _MAGIC:
        return False
    flags = data[4]
    if flags & 0b11000:  # bits that nobody sets
        return False
    one_segment = flags >> 5 & 1
    size = _SIZE[flags >> 6] or one_segment
    at = 5 + (1 - one_segment) + _DICTIONARY[flags & 3] + size
    last = False
    while not last:
        if len(data) < at + 3:
            return False
        block = int.from_bytes(data[at : at + 3], "little")
        last, repeats = bool(block & 1), block >> 1 & 3 == 1
        at += 3 + (1 if repeats else block >> 3)
    return at + 4 * (flags >> 2 & 1) == len(data)
