"""Draws the pictures of ``docs/overview``: what a call passes through, and how the levels nest.

    python tools/diagrams.py            writes them anew

The levels are read from the table of stages, so a picture that is out of step with it fails its test.  Letters come from the small
font below, so that no library for pictures is needed.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from tessera.machine import BY_NAME
from tessera.runtime.stages import STAGES

FOLDER = Path(__file__).parents[1] / "docs" / "overview"
Picture = np.ndarray  # uint8[height, width, 3]
Colour = tuple[int, int, int]

# Seven rows of five dots a letter (nine where it goes below the line), a hexadecimal number a row.
FONT = dict(line.split(maxsplit=1) for line in """
A 0E1111 1F111111|B 1E1111 1E11111E|C 0E1110 1010110E|D 1E1111 1111111E|E 1F1010 1E10101F|F 1F1010 1E101010|G 0E1110 1711110F
H 111111 1F111111|I 0E0404 0404040E|J 070202 0202120C|K 111214 18141211|L 101010 1010101F|M 111B15 15111111|N 111119 15131111
O 0E1111 1111110E|P 1E1111 1E101010|Q 0E1111 1115120D|R 1E1111 1E141211|S 0F1010 0E01011E|T 1F0404 04040404|U 111111 1111110E
V 111111 11110A04|W 111111 1515150A|X 11110A 040A1111|Y 11110A 04040404|Z 1F0102 0408101F
a 00000E 010F110F|b 101016 1911111E|c 00000E 1010110E|d 01010D 1311110F|e 00000E 111F100E|f 060908 1C080808|g 00000F 1111110F010E
h 101016 19111111|i 04000C 0404040E|j 020006 02020202120C|k 101012 14181412|l 0C0404 0404040E|m 00001A 15151111|n 000016 19111111
o 00000E 1111110E|p 00001E 1111111E1010|q 00000F 1111110F0101|r 000016 19101010|s 00000E 100E011E|t 08081C 08080906|u 000011 1111130D
v 000011 11110A04|w 000011 1115150A|x 000011 0A040A11|y 000011 1111110F010E|z 00001F 0204081F
0 0E1113 1519110E|1 040C04 0404040E|2 0E1101 0204081F|3 1F0204 0201110E|4 02060A 121F0202|5 1F101E 0101110E|6 060810 1E11110E
7 1F0102 04080808|8 0E1111 0E11110E|9 0E1111 0F01020C
. 000000 00000C0C|, 000000 000C0408|: 000C0C 000C0C00|- 000000 1F000000|/ 000102 04081000|+ 000404 1F040400|( 020408 08080402
) 080402 02020408|_ 000000 0000001F|@ 0E1101 0D15150E
""".replace("|", "\n").strip().splitlines())
WHITE, BLACK, GREY = (255, 255, 255), (32, 36, 44), (120, 128, 140)
SHADES = ((232, 240, 254), (214, 228, 252), (190, 213, 248), (160, 192, 240), (126, 166, 228), (92, 138, 210))


def canvas(width: int, height: int) -> Picture:
    return np.full((height, width, 3), 255, np.uint8)


def box(p: Picture, x: int, y: int, width: int, height: int, fill: Colour, edge: Colour = BLACK) -> None:
    p[y:y + height, x:x + width] = edge
    p[y + 2:y + height - 2, x + 2:x + width - 2] = fill


def write(p: Picture, x: int, y: int, text: str, scale: int = 2, colour: Colour = BLACK) -> None:
    """``text`` with its upper left corner at (x, y)."""
    for i, c in enumerate(text):
        if c == " ":
            continue
        rows = bytes.fromhex(FONT[c])
        dots = np.array([[r >> (4 - k) & 1 for k in range(5)] for r in rows], bool).repeat(scale, 0).repeat(scale, 1)
        place = p[y:y + len(rows) * scale, x + 6 * scale * i:x + 6 * scale * i + 5 * scale]
        place[dots] = colour


def centred(p: Picture, x: int, y: int, text: str, scale: int = 2, colour: Colour = BLACK) -> None:
    write(p, x - 3 * scale * len(text), y, text, scale, colour)


def arrow(p: Picture, x: int, y: int, length: int) -> None:
    """Downwards."""
    p[y:y + length - 6, x - 1:x + 2] = BLACK
    for i in range(8):
        p[y + length - 8 + i, x - 7 + i:x + 8 - i] = BLACK


WORK = {"graph": ("Graph IR", "tracing, transforms: grad, vmap, raising, cleanup"),
        "sched": ("Schedule IR", "scheduling: fusion, templates, memory plan"),
        "tile": ("Tile IR", "tiling, kernels: one block of each launch"),
        "ll": ("Target IR", "targets: emitters for CPUs and SIMT machines"),
        "o": ("Machine code", "runtime: compiled by LLVM, cached, run")}


def levels() -> list[tuple[str, str, str]]:
    """(stage, title, what makes it), in the order of the pipeline."""
    return [(s.name, *WORK[s.name]) for s in STAGES]


def overview() -> Picture:
    """The path of a call."""
    rows = levels()
    p = canvas(1000, 130 + 110 * (len(rows) + 1))
    centred(p, 500, 24, "Tessera: from a Python function to machine code", 3)
    box(p, 60, 80, 400, 56, WHITE)
    centred(p, 260, 100, "typed Python function", 2)
    for i, (name, title, work) in enumerate(rows):
        y = 190 + 110 * i
        arrow(p, 260, y - 54, 54)
        write(p, 290, y - 36, work, 2, GREY)
        box(p, 60, y, 400, 56, SHADES[i])
        centred(p, 260, y + 20, f"{title} (.{name})", 2)
    machines = "  ".join(n for n in BY_NAME if n not in ("nvidia", "amd", "intel"))
    centred(p, 500, p.shape[0] - 40, machines, 1, GREY)
    return p


def hierarchy() -> Picture:
    """What each level holds, the whole program above, one lane below."""
    holds = {"graph": "the program: ops on whole tensors", "sched": "launches: loops, fusion, buffers",
             "tile": "one block: tiles, shared memory", "ll": "one thread or vector: registers", "o": "instructions"}
    rows = levels()
    p = canvas(1000, 110 + 100 * len(rows))
    centred(p, 500, 24, "Levels of a Tessera program", 3)
    for i, (name, title, _) in enumerate(rows):
        half = 230 + 55 * i
        box(p, 500 - half, 80 + 100 * i, 2 * half, 88, SHADES[i])
        centred(p, 500, 98 + 100 * i, title, 3)
        centred(p, 500, 134 + 100 * i, holds[name], 2)
    return p


def png(p: Picture) -> bytes:
    """The picture as a PNG file (8-bit RGB, no filter)."""
    height, width, _ = p.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + p[y].tobytes() for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


PICTURES = {"tessera_overview.png": overview, "tessera_hierarchy.png": hierarchy}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_bytes(png(draw()))
