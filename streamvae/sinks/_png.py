"""Whether a PNG file is just that, as it was written."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_whole_png(data: bytes) -> bool:
    """Whether ``data`` is a PNG whose every chunk has its checksum, and which ends with its end."""
    at, kind = len(_SIGNATURE), b""
    if not data.startswith(_SIGNATURE):
        return False
    while kind != b"IEND":
        if len(data) < at + 12:
            return False
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if len(data) < end + 4:
            return False
        kind = data[at + 4 : at + 8]
        if struct.unpack_from(">I", data, end) != (zlib.crc32(data[at + 4 : end]),):
            return False
        at = end + 4
    return at == len(data)
