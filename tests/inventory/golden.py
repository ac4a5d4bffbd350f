"""Golden dumps: three programs at each level, for one machine.  `python tests/inventory/golden.py` writes them anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tessera as ts
from tessera.ir.core import Function
from tessera.machine import X86_AVX2
from tessera.runtime.compiler import Compiler

FOLDER = Path(__file__).parent / "golden"
M, S = ts.sym("M S")


def matmul(x: ts.Tensor[M, 16], w: ts.Tensor[16, 24]) -> ts.Tensor[M, 24]:
    return x @ w


def softmax(x: ts.Tensor[M, 24]) -> ts.Tensor[M, 24]:
    return ts.softmax(x)


def attention(q: ts.Tensor[S, 16], k: ts.Tensor[S, 16], v: ts.Tensor[S, 16]) -> ts.Tensor[S, 16]:
    return ts.attention(q, k, v)


PROGRAMS = {f.__name__: f for f in (matmul, softmax, attention)}


def graph(name: str) -> Function:
    return ts.jit(PROGRAMS[name]).trace()


def dumps(name: str) -> Iterator[tuple[str, str]]:
    """(level, text); of LLVM IR, which is long, what each module defines."""
    for level in ("graph", "sched", "tile", "ll"):
        text = Compiler(X86_AVX2).show(graph(name), level)
        if level == "ll":
            text = "\n".join(row for row in text.splitlines() if row.startswith("define"))
        yield level, text.strip() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PROGRAMS:
        for level, text in dumps(name):
            (FOLDER / f"{name}.{level}").write_text(text)
