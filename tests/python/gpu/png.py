"""Reads the pictures that obsdiff writes: 8 bits of red, green and blue, without interlacing."""

import struct
import zlib

CHANNELS = 3


def read(path):
    """Width, height, and the levels of all pixels, row by row from the top."""
    content = path.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is no PNG file")
    parts, place = {}, 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, part = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        parts[kind] = parts.get(kind, b"") + part
        place += length + 12
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    if (depth, colours, interlaced) != (8, 2, 0):
        raise ValueError(f"{path} is of a kind that obsdiff does not write")
    packed, row = zlib.decompress(parts[b"IDAT"]), width * CHANNELS
    levels, above = bytearray(), bytearray(row)
    for start in range(0, height * (row + 1), row + 1):
        above = unfiltered(packed[start], packed[start + 1 : start + 1 + row], above)
        levels += above
    return width, height, bytes(levels)


def unfiltered(kind, row, above):
    """A row as it was before it was replaced by its difference to the pixels on the left and above."""
    out = bytearray(len(row))
    for i, difference in enumerate(row):
        left = out[i - CHANNELS] if i >= CHANNELS else 0
        before = above[i - CHANNELS] if i >= CHANNELS else 0
        guess = [0, left, above[i], (left + above[i]) // 2, nearest(left, above[i], before)][kind]
        out[i] = (difference + guess) % 256
    return out


def nearest(left, above, before):
    """Of three levels the one that is nearest to left + above - before; the first one of equally near ones."""
    return min([left, above, before], key=lambda level: abs(left + above - before - level))
