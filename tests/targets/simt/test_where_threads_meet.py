"""Where the threads of a block meet in loops: before them rather than in each turn, and nowhere if turns touch elements of their own."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.ir.core import BufferType
from tessera.machine import NVIDIA_SM80
from tessera.targets.simt.emit import emit
from tessera.tiling import dsl as tile
from tessera.tiling.assign import assign_layouts
from tessera.types.dtypes import f32


def barriers(body: Any, space: str | None = None, noalias: bool = False) -> tuple[int, int]:
    """(barriers before and after the last loop, barriers in it) of a program on two vectors of 4096."""
    program = tile.TileProgram("k", [("a", BufferType(f32, (4096,))), ("b", BufferType(f32, (4096,)))])

    def whole(a: Any, b: Any) -> None:
        body(a, tile.alloc((4096,), f32, space) if space else b)

    fn = tile.build(program, whole)
    fn.attrs["noalias"] = noalias
    text = emit(assign_layouts(fn, NVIDIA_SM80), NVIDIA_SM80).text
    lines = [x.strip() for x in text[text.index("start:"):].splitlines()]
    begin = max(i for i, x in enumerate(lines) if x.startswith("loop"))
    label = lines[begin][:-1]
    end = max(i for i, x in enumerate(lines) if f"label %{label}," in x)
    inside = sum("barrier" in x for x in lines[begin:end])
    return sum("barrier" in x for x in lines) - inside, inside


def over(step: int, act: Any) -> Any:
    def body(i: Any, _: Any) -> tuple[()]:
        act(i)
        return ()
    return tile.for_loop((0, 3584, step), (), body)


@pytest.mark.parametrize("space", [None, "local", "shared"])
def test_turns_that_touch_elements_of_their_own(space: str | None) -> None:
    def body(a: Any, b: Any) -> None:
        over(256, lambda i: tile.store(b, (i,), tile.load(b, (i,), (256,)) + tile.load(a, (i,), (256,))))
    assert barriers(body, space) == (0, 0)


def test_turns_that_overlap() -> None:
    def closer(a: Any, b: Any) -> None:
        over(128, lambda i: tile.store(b, (i,), tile.load(a, (i,), (256,))))

    def shifted(a: Any, b: Any) -> None:  # b may be a
        over(256, lambda i: tile.store(b, (i,), tile.load(a, (i + 1,), (256,))))

    def still(a: Any, b: Any) -> None:
        over(256, lambda i: tile.store(b, (0,), tile.load(b, (0,), (256,)) + tile.load(a, (i,), (256,))))

    def modular(a: Any, b: Any) -> None:
        over(256, lambda i: tile.store(b, (i % 512,), tile.load(a, (i,), (256,))))

    for body in (closer, shifted, modular):
        assert barriers(body)[1] >= 1, body.__name__
    assert barriers(shifted, noalias=True) == (0, 0)
    assert barriers(still)[1] >= 1  # b may be a


def test_a_loop_that_reads_what_another_wrote_waits_once() -> None:
    def body(a: Any, b: Any) -> None:
        over(256, lambda i: tile.store(b, (i,), tile.load(a, (i,), (256,))))
        over(256, lambda i: tile.store(b, (i,), tile.load(b, (i,), (256,)) * 2.0))
    assert barriers(body) == (1, 0)


def test_offsets_that_grow_by_a_multiple() -> None:
    def by(n: int) -> Any:
        def turn(a: Any, b: Any, at: Any) -> None:
            tile.store(b, (at,), tile.load(a, (at,), (256,)))
        return lambda a, b: over(1, lambda i: turn(a, b, i * n + 7))
    assert barriers(by(256)) == (0, 0) and barriers(by(255))[1] >= 1
