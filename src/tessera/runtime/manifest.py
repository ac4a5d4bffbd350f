"""What a compiled program is, apart from its code: enough to run it without any of the compiler.

A manifest is plain data and travels with the objects as JSON, so that a warm start reads one file and loads it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

from ..ir.core import BufferType
from ..types.dims import DimLike, format_dim, parse_dim
from ..types.dtypes import as_dtype

VERSION = 3
_LENGTH = struct.Struct("<I")


@dataclass
class Manifest:
    """
    Attributes:
        name: the function's name.
        inputs, outputs: (dtype, sizes as texts) of each array.
        sizes: names of the symbolic sizes, in the order of the program's table.
        arena: bytes of temporaries, a size.
        work: element operations of the launches, sizes.
        checks: the messages of the run-time checks, by site.
        externals: host routines: function, (dtype, sizes) of each operand, attributes as text.
        serial: element operations below which the program does not share a launch out.
        waits: True when native code calls back into Python (host routines, or looks for an interrupt).
        launches: the name of each launch and the kernel that runs it.
        donated: inputs that the program may overwrite.
        aliases: (result, input): that result is the input's own array, changed in place.
        operations: how many graph operations the launches stand for.
    """

    name: str
    inputs: list[tuple[str, list[str]]] = field(default_factory=list)
    outputs: list[tuple[str, list[str]]] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    arena: str = "0"
    work: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    externals: list[tuple[str, list[tuple[str, list[str]]], str]] = field(default_factory=list)
    serial: int = 0
    waits: bool = False
    launches: list[tuple[str, str]] = field(default_factory=list)
    operations: int = 0
    donated: list[int] = field(default_factory=list)
    aliases: list[tuple[int, int]] = field(default_factory=list)
    version: int = VERSION


def buffer_facts(t: BufferType) -> tuple[str, list[str]]:
    return t.dtype.name, [format_dim(d) for d in t.shape]


def buffer_type(facts: tuple[str, list[str]]) -> BufferType:
    dtype, sizes = facts
    return BufferType(as_dtype(dtype), tuple(size(s) for s in sizes))


def size(text: str) -> DimLike:
    return int(text) if text.isdigit() else parse_dim(text)


def pack(manifest: Manifest, objects: list[bytes]) -> bytes:
    """One payload for the cache."""
    head = json.dumps({"manifest": asdict(manifest), "objects": [len(o) for o in objects]}).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *objects])


def unpack(payload: bytes) -> tuple[Manifest, list[bytes]]:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: the payload is of another version, or no such payload.
    """
    try:
        (n,) = _LENGTH.unpack_from(payload)
        head: dict[str, Any] = json.loads(payload[4:4 + n])
        if head["manifest"].get("version") != VERSION:
            raise ValueError("a manifest of another version")
        at = 4 + n
        objects = []
        for length in head["objects"]:
            objects.append(payload[at:at + length])
            at += length
        return Manifest(**head["manifest"]), objects
    except (struct.error, KeyError, TypeError) as e:
        raise ValueError(f"not a compiled program: {e}") from e
