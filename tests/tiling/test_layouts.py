"""Linear layouts: the algebra against brute force, and the promises of conversions and swizzles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.tiling.layouts import (
    Layout,
    blocked,
    complement,
    conflicts,
    contiguous,
    free_bits,
    grid_of_threads,
    movement,
    solve,
    swizzle,
)


def holders(layout: Layout) -> dict[tuple[int, int, int], int]:
    """Every place and its element."""
    widths = [1 << len(layout.bases(p)) for p in ("reg", "lane", "warp")]
    return {(r, n, w): layout.element(reg=r, lane=n, warp=w)
            for r in range(widths[0]) for n in range(widths[1]) for w in range(widths[2])}


@st.composite
def layouts(draw: st.DrawFn, bits: int = 6, lanes: int = 3, warps: int = 1) -> Layout:
    """A layout that reaches every element: the bits in any order, some mixed, some replicated."""
    order = draw(st.permutations([1 << i for i in range(bits)]))
    places = list(order)
    for i in range(1, bits):
        if draw(st.booleans()):
            places[i] ^= places[draw(st.integers(0, i - 1))]
    extra = draw(st.integers(0, 1))
    lane = places[:lanes - extra] + [0] * extra
    rest = places[lanes - extra:]
    return Layout((bits - 3, 3), (("reg", tuple(rest[warps:])), ("lane", tuple(lane)), ("warp", tuple(rest[:warps]))))


@settings(deadline=None)
@given(layouts())
def test_layouts_reach_every_element_and_invert(layout: Layout) -> None:
    assert layout.surjective
    assert set(holders(layout).values()) == set(range(64))
    back = layout.inverse()
    nr, nl = len(layout.bases("reg")), len(layout.bases("lane"))
    for e in range(64):
        place = back.element(element=e)
        assert layout.element(reg=place & ((1 << nr) - 1), lane=place >> nr & ((1 << nl) - 1), warp=place >> (nr + nl)) == e


@settings(deadline=None)
@given(layouts())
def test_text_round_trip(layout: Layout) -> None:
    assert Layout.parse(str(layout), (8, 8)) == layout


@settings(deadline=None)
@given(layouts())
def test_transposed_reduced_and_clipped(layout: Layout) -> None:
    turned, summed, clipped = layout.permuted((1, 0)), layout.without(0), layout.clipped((2, 3))
    for at, e in holders(layout).items():
        place = dict(zip(("reg", "lane", "warp"), at, strict=True))
        i, j = layout.index(e)
        assert turned.index(turned.element(**place)) == (j, i)
        assert summed.index(summed.element(**place)) == (j,)
        assert clipped.index(clipped.element(**place)) == (i % 4, j)


@settings(deadline=None)
@given(layouts(), layouts())
def test_movements_move_every_element(source: Layout, target: Layout) -> None:
    how = movement(source, target)
    held = holders(source)
    if how.kind == "none":
        assert source == target
    elif how.kind in ("registers", "shuffle"):
        for (r, n, w), e in holders(target).items():
            lane = how.lanes[r]
            for i, m in enumerate(how.lane_map):
                lane ^= m if n >> i & 1 else 0
            assert held[how.registers[r], lane, w] == e
    else:
        offsets = swizzle(source, target, 32)
        assert sorted(offsets.element(offset=i) for i in range(64)) == list(range(64))
        for layout in (source, target):
            there, v = layout.compose(offsets.inverse()), contiguous(layout, offsets)
            for (r, n, w), e in holders(layout).items():
                at = there.element(reg=r, lane=n, warp=w)
                assert offsets.element(offset=at) == e
                assert at % v == r % v  # vectors are aligned


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (16, 128)])
def test_transposes_through_shared_memory_are_free_of_conflicts(bits: int, shape: tuple[int, int]) -> None:
    rows = blocked(shape, max(1, 128 // bits), 32, 4)
    columns = blocked(shape[::-1], max(1, 128 // bits), 32, 4).permuted((1, 0))
    offsets = swizzle(rows, columns, bits)
    most = max(1, 32 // bits)  # elements that share a word may have to be moved one by one
    assert conflicts(rows, offsets, bits) <= most
    assert conflicts(columns, offsets, bits) <= most


def test_row_major_memory_would_have_conflicts() -> None:
    columns = blocked((32, 32), 1, 32, 1).permuted((1, 0))
    plain = Layout((5, 5), (("offset", tuple(1 << i for i in range(10))),))
    assert conflicts(columns, plain, 32) == 8  # of eight lanes with a vector of 16 bytes each
    assert conflicts(columns, swizzle(blocked((32, 32), 1, 32, 1), columns, 32), 32) == 1


@pytest.mark.parametrize("shape", [(1,), (5,), (64,), (1000,), (3, 40), (16, 16), (2, 3, 5)])
@pytest.mark.parametrize("lanes,warps", [(16, 1), (32, 4), (64, 2)])
def test_blocked_layouts(shape: tuple[int, ...], lanes: int, warps: int) -> None:
    layout = blocked(shape, 4, lanes, warps)
    assert layout.surjective and layout.plain
    assert len(layout.bases("lane")) == lanes.bit_length() - 1 and len(layout.bases("warp")) == warps.bit_length() - 1
    copies = sum(len(f) for f in free_bits(layout).values())
    total = np.prod([1 << b for b in layout.bits])
    assert (1 << copies) * total == len(holders(layout))


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (1, 8), (128, 32), (14, 30)])
def test_a_grid_of_threads_covers_the_product(shape: tuple[int, int]) -> None:
    layout = grid_of_threads(shape, 32, 4)
    assert layout.surjective and layout.plain
    registers = [layout.index(layout.element(reg=r)) for r in range(1 << len(layout.bases("reg")))]
    assert len(registers) == len({i for i, _ in registers}) * len({j for _, j in registers})  # a rectangle


def test_a_tensor_core_result_is_the_next_products_operand() -> None:
    """The accumulator of m64n128 (bf16) becomes the left operand of the next product by renaming registers."""
    n, m = [1 << i for i in range(7)], [1 << (7 + i) for i in range(6)]
    acc = Layout((6, 7), (("reg", (n[0], m[3], *n[3:])), ("lane", (n[1], n[2], m[0], m[1], m[2])), ("warp", (m[4], m[5]))))
    operand = Layout((6, 7), (("reg", (n[0], m[3], n[3], *n[4:])), ("lane", (n[1], n[2], m[0], m[1], m[2])), ("warp", (m[4], m[5]))))
    assert movement(acc, operand).kind in ("none", "registers")
    assert movement(acc, blocked((64, 128), 8, 32, 4)).kind == "shared"


def test_pictures() -> None:
    layout = blocked((2, 4), 2, 4, 1)
    assert layout.picture() == "warp:lane:reg\n0:0:0 0:0:1 0:1:0 0:1:1\n0:2:0 0:2:1 0:3:0 0:3:1"


def test_f2_elimination() -> None:
    assert solve([0b011, 0b110], 0b101) == 0b11
    assert solve([0b011, 0b110], 0b001) is None
    assert complement([0b011, 0b110], 3) == [0b001]


def test_wrong_texts() -> None:
    with pytest.raises(ValueError, match="no layout"):
        Layout.parse("1.2_3", (8,))
    with pytest.raises(ValueError, match="every element"):
        Layout((2,), (("reg", (1,)),)).inverse()
