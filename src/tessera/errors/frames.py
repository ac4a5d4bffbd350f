"""The user's own stack frames, and the source lines they stand on."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from types import CodeType, FrameType
from typing import NamedTuple

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
LIBRARIES = tuple({sysconfig.get_paths()[k] + os.sep for k in ("stdlib", "platstdlib", "purelib", "platlib")})
GENERATED = "<tessera"  # file names of code that the package writes at run time start so


class Site(NamedTuple):
    """A place in a program: the fields of ``ir.core.Loc``."""

    file: str
    line: int
    function: str
    span: tuple[int, int, int, int] | None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def is_internal(file: str) -> bool:
    """True for code of this package (and code it generates), which a user's stack trace leaves out."""
    return file.startswith((PACKAGE, GENERATED))


def span_of(code: CodeType, instruction: int) -> tuple[int, int, int, int] | None:
    """(line, end line, column, end column) of an instruction; columns count UTF-8 bytes from 0."""
    for i, pos in enumerate(code.co_positions()):
        if i == instruction // 2:
            return pos if all(p is not None for p in pos) else None  # type: ignore[return-value]
    return None


def user_frames(start: FrameType | None = None, limit: int = 12) -> tuple[Site, ...]:
    """The user's frames, innermost first: outside the package, and outside installed libraries where there are any such."""
    frame = start if start is not None else sys._getframe(1)
    own: list[FrameType] = []
    other: list[FrameType] = []
    while frame is not None and len(own) < limit:
        file = frame.f_code.co_filename
        if not is_internal(file) and not file.startswith("<frozen"):
            (other if file.startswith(LIBRARIES) else own).append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(Site(f.f_code.co_filename, f.f_lineno, f.f_code.co_name, span_of(f.f_code, f.f_lasti))
                 for f in own or other[:limit])


def _characters(line: str, byte_column: int) -> int:
    return len(line.encode()[:byte_column].decode(errors="ignore"))


def excerpt(file: str, line: int, span: tuple[int, int, int, int] | None) -> list[str]:
    """The line with one neighbour on each side and a row of ``~`` under the span; empty where there is no source."""
    middle = linecache.getline(file, line)
    if not middle.strip():
        return []
    rows = {n: linecache.getline(file, n).rstrip("\n") for n in (line - 1, line, line + 1) if n > 0}
    rows = {n: text for n, text in rows.items() if n == line or text.strip()}
    width = len(str(max(rows)))
    out = []
    for n, text in rows.items():
        mark = "  # ← Error here" if n == line else ""
        out.append(f"{n:>{width}} | {text}{mark}")
        if n == line:
            first, last = _columns(text, line, span)
            if last > first:
                out.append(f"{' ' * width} | {' ' * first}{'~' * (last - first)}")
    return out


def _columns(text: str, line: int, span: tuple[int, int, int, int] | None) -> tuple[int, int]:
    indent = len(text) - len(text.lstrip())
    if span is None or span[0] != line:
        return indent, len(text)
    first = _characters(text, span[2])
    last = _characters(text, span[3]) if span[1] == line else len(text.rstrip())
    return first, last
