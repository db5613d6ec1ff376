"""ICC profiles of grey and of four inks, small ones, which Pillow cannot make by itself."""

from __future__ import annotations

import struct

_D50 = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _text(kind: bytes, text: str) -> bytes:
    return kind + bytes(4) + text.encode() + b"\0"


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 (ICC.1:2001-04, clauses 6.1 and 6.2)."""
    description = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    white = b"XYZ " + bytes(4) + _fixed(*_D50)
    tags = {b"desc": description, b"cprt": _text(b"text", "none"), b"wtpt": white, **tags}
    table, content, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I", start + len(content)) + bytes(4) + b"\2\x10\0\0" + device + space + connection
    header += bytes(12) + b"acsp" + bytes(28) + _fixed(*_D50)
    return header.ljust(128, b"\0") + table + content


def grey_profile(gamma: float = 1.0) -> bytes:
    """A grey space whose luminance is value ** gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def ink_profile() -> bytes:
    """CMYK by a table of its 16 corners in Lab: each ink darkens, and two of them tint."""
    corners = []
    for corner in range(16):
        cyan, magenta, yellow, black = (corner >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = 255 - 40 * (cyan + magenta + yellow) - 130 * black
        corners += [lightness, 128 + 60 * magenta - 30 * cyan, 128 + 70 * yellow - 40 * cyan]
    unity = _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unity + 4 * ramp + bytes(corners) + 3 * ramp
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})
