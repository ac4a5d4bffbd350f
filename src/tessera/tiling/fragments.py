"""Fragments: tiles as the operands and results of matrix instructions, said by the kernel itself.

    a, b = tile.fragment.a((16, 16), ts.bf16), tile.fragment.b((16, 16), ts.bf16)
    c = tile.fragment.c((16, 16), ts.f32)
    tile.load_matrix(a, A[i:i + 16, k:k + 16])
    tile.load_matrix(b, B[k:k + 16, j:j + 16])
    tile.mma(c, a, b, c)
    tile.store_matrix(C[i:i + 16, j:j + 16], c)

A fragment is a register whose place among the lanes of a warp is the matrix instruction's: ``mma.sync`` on NVIDIA, MFMA on AMD.
``load_matrix`` from shared memory is ``ldmatrix`` where that is legal.  Machines without a matrix unit compute the same by fma.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..machine.names import machine as machine_named
from ..machine.nvidia import NVIDIA_SM89
from ..types.dims import Dim
from ..types.dtypes import DType, as_dtype
from .explicit import SharedTile
from .kernel_ops import store
from .kernel_values import Demand, Param, Part, Register, Shared, Window, program
from .layouts import Layout, of_fragments
from .values import TileValue, as_value, fail, internal, static_shape

internal(__file__)

_SIDES = {"a": "left operand", "b": "right operand", "c": "accumulator"}


class Fragment(Register):
    """A register that holds an operand or the result of matrix instructions; made by ``tile.fragment.a``, ``.b`` and ``.c``.

    Attributes:
        side: "a" (``[m, k]``), "b" (``[k, n]``) or "c" (``[m, n]``).
    """

    __slots__ = ("side",)

    def __init__(self, side: str, shape: tuple[int, ...], dtype: DType):
        super().__init__(shape, dtype)
        self.side = side

    def lanes(self, target: str = "sm_80") -> np.ndarray[Any, Any]:
        """Which elements the lanes of one warp hold on a machine: ``[lane, register, (row, column)]``.

        Raises:
            ArgumentError: no machine is called so.
            KernelError: its matrix unit lacks this type or shape.
        """
        m = machine_named(target)
        for unit in getattr(m, "instructions", ()):
            extents, own = _part(unit, self.side)
            if own is self.dtype and all(n % e == 0 for n, e in zip(self.shape, extents, strict=True)):
                steps = getattr(m.fragments_of(unit), {"a": "lhs", "b": "rhs", "c": "result"}[self.side])
                return _places(of_fragments(self.shape, extents, steps, ()))  # type: ignore[arg-type]
        fail(f"{m.name} has no matrix instruction with a fragment.{self.side} of {self.dtype}{list(self.shape)}",
             expected=_known(m, self.side), received=f"{self.dtype}{list(self.shape)}")

    def __repr__(self) -> str:
        return f"<fragment.{self.side} {self.dtype}{list(self.shape)}>"


def _part(unit: Any, side: str) -> tuple[tuple[int, int], DType]:
    return {"a": ((unit.m, unit.k), unit.lhs), "b": ((unit.k, unit.n), unit.rhs), "c": ((unit.m, unit.n), unit.accumulate)}[side]


def _places(layout: Layout) -> np.ndarray[Any, Any]:
    lanes, registers = (1 << len(layout.bases(p)) for p in ("lane", "reg"))
    return np.array([[layout.index(layout.element(reg=r, lane=lane)) for r in range(registers)] for lane in range(lanes)])


def _known(m: Any, side: str) -> str:
    parts = dict.fromkeys(_part(unit, side) for unit in m.instructions)
    return ", ".join(f"multiples of {dtype}[{e[0]}, {e[1]}]" for e, dtype in parts) or "a machine with a matrix unit"


class _Fragments:
    """``tile.fragment``."""

    @staticmethod
    def a(shape: Any = None, dtype: Any = None) -> Fragment:
        """The left operand ``[m, k]`` of :func:`tessera.tile.mma`."""
        return _fragment("a", shape, dtype)

    @staticmethod
    def b(shape: Any = None, dtype: Any = None) -> Fragment:
        """The right operand ``[k, n]``."""
        return _fragment("b", shape, dtype)

    @staticmethod
    def c(shape: Any = None, dtype: Any = None) -> Fragment:
        """The accumulator ``[m, n]``, zero at first."""
        return _fragment("c", shape, dtype)


fragment = _Fragments()


def _fragment(side: str, shape: Any, dtype: Any) -> Fragment:
    """A new fragment.

    Raises:
        KernelError: no matrix unit has this type, or no whole number of its instructions covers the shape.
    """
    example = f"tile.fragment.{side}((16, 16), ts.{'f32' if side == 'c' else 'bf16'})"
    if shape is None or dtype is None:
        fail(f"a fragment needs {'a shape' if shape is None else 'an element type'}", expected=example, received="none")
    extents = static_shape(shape, "fragment shape")
    try:
        kind = as_dtype(dtype)
    except TypeError as e:
        fail(f"a fragment needs an element type: {e}", expected=example, received=repr(dtype)[:60])
    units = [_part(unit, side) for unit in NVIDIA_SM89.instructions]  # the common ground: AMD's instructions take multiples of these
    if len(extents) != 2:
        fail(f"a fragment is a matrix, not of rank {len(extents)}", expected="shape=(rows, columns)", received=str(list(extents)))
    kinds = dict.fromkeys(own for _, own in units)
    if kind not in kinds:
        fail(f"no matrix unit takes {kind} as its {_SIDES[side]}", expected=", ".join(k.name for k in kinds), received=kind.name,
             hints=["convert before the product: x.to(ts.bf16)", "tile.dot multiplies every type, by fma"])
    shapes = dict.fromkeys(e for e, own in units if own is kind)
    if not any(n > 0 and n % e[0] == 0 and k % e[1] == 0 for e in shapes for n, k in [extents]):
        fail(f"a fragment.{side} of {kind} does not divide into matrix instructions",
             expected=" or ".join(f"multiples of [{r}, {c}]" for r, c in shapes), received=str(list(extents)))
    made = Fragment(side, extents, kind)
    program().registers.append(made)
    if side == "c":
        made.write(0)
    return made


# -- moving --------------------------------------------------------------------------------------------------------------
def _is_fragment(x: Any, what: str) -> Fragment:
    if not isinstance(x, Fragment):
        fail(f"{what} takes a fragment, not {x!r}", hints=["tile.fragment.a(shape=(16, 16), dtype=ts.bf16)"])
    return x


def _check_stride(x: Any, stride: Any, what: str) -> None:
    """The stride is what the memory has: elements from one row to the next."""
    if stride is None:
        return
    if isinstance(x, Param | Window):
        param = x if isinstance(x, Param) else x.param
        pitch = param.buffer.shape[-1]
        if isinstance(pitch, Dim):
            raise Demand(param.key(param.buffer.rank - 1))
        name = param.name
    else:
        pitch, name = x.buffer.shape[-1], repr(x)
    if stride != pitch:
        fail(f"{what}: the rows of {name} lie {pitch} elements apart, not {stride}",
             expected=f"stride={pitch}", received=f"stride={stride}",
             hints=["leave stride= out: it follows from the memory"])


def load_matrix(frag: Fragment, src: Any, stride: int | None = None, transposed: bool = False) -> Fragment:
    """Fill a fragment from a parameter, a window or shared memory.

    Args:
        stride: elements from one row to the next; it must be what the memory has, and may be left out.
        transposed: the memory holds the transposed matrix.

    Of a parameter the program's own window is taken; its contraction must fit the fragment.

    Raises:
        KernelError: shapes, types or the stride do not fit.
    """
    f = _is_fragment(frag, "load_matrix")
    _check_stride(src, stride, "load_matrix")
    shape = f.shape[::-1] if transposed else f.shape
    if isinstance(src, Param | Window):
        value = as_value(_own_window(src, f, shape, transposed).load())
    elif isinstance(src, Shared | SharedTile | Register | TileValue):
        value = as_value(src)
    else:
        fail(f"load_matrix reads a parameter, a window or shared memory, not {src!r}")
    if value.shape != shape:
        fail(f"load_matrix: {src!r} of shape {list(value.shape)} does not fill {f!r}", expected=f"shape {list(shape)}",
             received=str(list(value.shape)))
    if value.dtype is not f.dtype:
        fail(f"load_matrix: {src!r} holds {value.dtype}, and the fragment {f.dtype}", expected=f.dtype.name, received=value.dtype.name)
    f.write(value.T if transposed else value)
    return f


def _own_window(src: Param | Window, f: Fragment, shape: tuple[int, ...], transposed: bool) -> Window:
    """A window of the fragment's extents: rows and columns are the program's, the contraction is whole."""
    window = src.whole() if isinstance(src, Param) else src
    open_ = [p for p in window.parts if not p.single]
    if len(open_) != 2:
        fail(f"{src!r} is no matrix", expected="two axes inside the kernel")
    along = {"a": 1, "b": 0, "c": None}[f.side]
    along = 1 - along if along is not None and transposed else along
    for k, (part, n) in enumerate(zip(open_, shape, strict=True)):
        if part.start is not None:
            if part.extent not in (None, n):
                fail(f"{src!r} does not fill {f!r}", expected=f"a window of {list(shape)}", received=repr(src))
            window = window.replaced(part, Part(part.axis, part.start, n))
            continue
        total = window.total(part)
        if k == along and isinstance(total, Dim):
            raise Demand(window.param.key(part.axis))
        if k == along and total > n:  # type: ignore[operator]
            fail(f"the contraction of {window.param.name!r} has {total} elements, and {f!r} has {n}",
                 hints=[f"loop over windows: for k in tile.range({window.param.name}.shape[{part.axis}], step={n})"])
        window = window.replaced(part, Part(part.axis, 0 if k == along else None, n))
    return window


def store_matrix(dst: Any, frag: Fragment, stride: int | None = None) -> None:
    """Write a fragment to a parameter (the program's own window), a window or shared memory; lanes outside a tensor are skipped.

    Args:
        stride: as for :func:`load_matrix`.

    Raises:
        KernelError: shapes or the stride do not fit.
    """
    f = _is_fragment(frag, "store_matrix")
    _check_stride(dst, stride, "store_matrix")
    if isinstance(dst, SharedTile):
        dst.store(f)
    else:
        store(dst, f)


def check_sides(d: Any, a: Any, b: Any, c: Any) -> None:
    """``mma(d, a, b, c)`` of fragments takes each at its place.

    Raises:
        KernelError: one stands at another's place.
    """
    for value, side, name in ((d, "c", "d"), (a, "a", "a"), (b, "b", "b"), (c, "c", "c")):
        if isinstance(value, Fragment) and value.side != side:
            fail(f"mma(d, a, b, c): {name} is {value!r}", expected=f"a fragment.{side}", received=f"a fragment.{value.side}")


NAMES = ("fragment", "load_matrix", "store_matrix")

__all__ = [*NAMES, "Fragment", "check_sides"]
