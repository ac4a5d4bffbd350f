"""Eager execution: one op at a time, through the same compiler as whole programs.

An op on concrete tensors becomes a program of its own the first time it is met with these dtypes and this *pattern* of
sizes, and is looked up afterwards.  Where an op's attributes mention no sizes, its program has symbolic ones (equal
sizes share a name), so that new shapes need no compilation.  Ops that only reinterpret memory are numpy views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import IndexOutOfRangeError, NumericalError, TesseraError, UnsupportedError
from ..ir.core import Block, Builder, Function, TensorType
from ..types import dims
from ..types.dims import Dim, DimLike
from . import recorder
from .placed import DeviceArray, to_device, where
from .tensor import _OF_NUMPY, Tensor, make, ndarray

Run = Callable[[list[Any]], Sequence[Any]]


# -- registry, filled when the package is assembled -------------------------------------------------------------------
COMPILER: Any = None
"""``compile(fn: Function) -> executable``, and ``executable(arrays) -> arrays``; None: the interpreter of Graph IR.

``reuses_donated = True`` on it says that its executables return results in the memory of donated parameters where the
schedule lists them in ``aliases``; without it the Graph attribute ``donated`` is not written.
"""

LIMIT = 8192  # entries of the exact-shape table; it starts over when full


DEVICES: dict[str, Callable[[str], Any]] = {}
"""Kinds of devices ("gpu") -> the compiler for a device by name; filled when the package is assembled."""


def compile_graph(fn: Function, device: str | None = None) -> Run:
    """An executable for ``fn``: compiled where there is a compiler, else interpreted; for a device, by that device's compiler."""
    if device is not None:
        made: Run = DEVICES[device.partition(":")[0]](device).compile(fn)
        return made
    if COMPILER is not None:
        with recorder.without_policies():  # the graph says all; passes that record definitions must not read the scope again
            run: Run = COMPILER.compile(fn)
        return run
    from ..ir.interpret_graph import interpret
    return lambda arrays: interpret(fn, arrays)


# -- views -------------------------------------------------------------------------------------------------------------
def _slice(a: Any, start: Any, limit: Any, stride: Any) -> Any:
    return a[tuple([slice(s, e, k) for s, e, k in zip(start, limit, stride)])]


VIEWS: dict[str, Callable[..., Any]] = {
    "reshape": lambda a, shape: a.reshape(shape),
    "transpose": lambda a, perm: a.transpose(perm),
    "broadcast_to": lambda a, shape: np.broadcast_to(a, shape),
    "slice": _slice,
    "flip": lambda a, axes: np.flip(a, axes),
}
"""Ops that need no program: (array, attributes) -> a view of it."""


def _iota(shape: Any, axis: int, dtype: Any) -> Any:
    line = np.arange(shape[axis]).astype(dtype.np).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(line, shape)


HOST: dict[str, Callable[..., Any]] = {
    "constant": lambda value, dtype=None: value if isinstance(value, ndarray) else np.asarray(value, dtype and dtype.np),
    "full": lambda shape, value, dtype: np.full(shape, np.asarray(value).astype(dtype.np), dtype.np),
    "iota": _iota,
}
"""Ops that the host answers: attributes -> array."""

# -- dispatch ----------------------------------------------------------------------------------------------------------
_exact: dict[Any, Run] = {}
_programs: dict[Any, Run] = {}


def clear() -> None:
    """Forget every prepared op."""
    _exact.clear()
    _programs.clear()


def _key(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    value = attrs.get("value")  # of padding: 0.0 == -0.0
    return (name, *operands, *attrs.items(), value.hex() if type(value) is float else None)


def dispatch(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Run one op on concrete tensors."""
    arrays = []
    elsewhere = False
    for t in operands:
        if type(t) is not Tensor:
            t = recorder.lift(t)
        p = t._p
        if type(p) is not ndarray:
            if not isinstance(p, DeviceArray):
                t._concrete(f"{name!r} outside the traced function")
            elsewhere = True
        arrays.append(p)
    if elsewhere and recorder.STATE.home is not None:  # the function's own constants go along
        arrays = [to_device(a, recorder.STATE.home) if type(a) is ndarray and a.shape else a for a in arrays]
    key: Any
    try:
        key = _key(name, [(a.dtype, a.shape) for a in arrays], attrs)
        run = _exact.get(key)
    except TypeError:  # an attribute that cannot be a key: prepared anew each time
        key, run = None, None
    if run is None:
        run = _prepare(name, arrays, attrs, key)
    try:
        out = run(arrays)
    except (IndexOutOfRangeError, NumericalError) as e:  # the program is kept from the line that first used it
        e.loc = recorder.user_loc()
        raise
    if len(out) == 1:
        return make(out[0])
    return tuple([make(a) for a in out])


def _prepare(name: str, arrays: list[Any], attrs: dict[str, Any], key: Any) -> Run:
    types = [TensorType(_OF_NUMPY[a.dtype], a.shape) for a in arrays]
    loc = recorder.user_loc(3)
    effects = recorder.EFFECTS.get(name)
    if effects is not None:
        recorder.check_effects(effects, name)
    if name in HOST:
        host = HOST[name]
        return lambda _arrays: (host(**attrs),)
    recorder.infer(name, types, attrs, loc)
    run: Run
    device = where(arrays)
    if device is not None:
        run = program(name, types, attrs, loc, device)
    elif name in VIEWS:
        view = VIEWS[name]
        run = lambda xs: (view(xs[0], **attrs),)
    else:
        run = program(name, types, attrs, loc)
    if key is not None and effects is None:
        if len(_exact) >= LIMIT:
            _exact.clear()
        _exact[key] = run
    return run


# Attributes that are the same for every size of the operands.
SIZELESS = frozenset({
    "axis", "axes", "keepdims", "accumulate", "dtype", "saturate", "rounding", "fast", "exponent_bits", "mantissa_bits", "perm",
    "eps", "scale", "causal", "approximate", "reverse", "exclusive", "descending", "lhs_contract", "rhs_contract",
    "lhs_batch", "rhs_batch", "checked", "mode", "side",
})


HEADS: set[str] = set()
"""Composites whose template wants the extents of a head (the last axis of operands 0 to 2) as numbers; filled when the package is
assembled."""


def program(name: str, types: list[TensorType], attrs: dict[str, Any], loc: Any, device: str | None = None) -> Run:
    """The program for an op; one serves every size with the same pattern of equal sizes where that is possible."""
    general = symbolic(types, name in HEADS) if attrs.keys() <= SIZELESS else types
    try:
        key = (device, _key(name, general, attrs))
        found = _programs.get(key)
    except TypeError:
        key, found = None, None
    if found is not None:
        return found
    fn = None
    if general is not types:
        try:
            fn = one_op(name, general, attrs, loc)
        except TesseraError:  # the rule wants numbers: the program is for these sizes alone
            return _program_for(name, types, attrs, loc, device)
    try:
        run = compile_graph(fn if fn is not None else one_op(name, types, attrs, loc), device)
    except UnsupportedError:  # a kernel wants numbers (the length of a Fourier transform)
        if fn is None:
            raise
        return _program_for(name, types, attrs, loc, device)
    if device is not None and fn is not None:
        run = _or_exact(run, name, attrs, loc, device)
    if key is not None:
        _programs[key] = run
    return run


def _or_exact(run: Run, name: str, attrs: dict[str, Any], loc: Any, device: str) -> Run:
    """``run``; where its kernels, which devices compile at the first launch, want numbers, a program for each call's sizes."""
    general = True

    def call(arrays: list[Any]) -> Sequence[Any]:
        nonlocal general
        if general:
            try:
                return run(arrays)
            except UnsupportedError:
                general = False
        return _program_for(name, [TensorType(_OF_NUMPY[a.dtype], a.shape) for a in arrays], attrs, loc, device)(arrays)

    return call


def _program_for(name: str, types: list[TensorType], attrs: dict[str, Any], loc: Any, device: str | None = None) -> Run:
    key = (device, _key(name, types, attrs))
    if key not in _programs:
        _programs[key] = compile_graph(one_op(name, types, attrs, loc), device)
    return _programs[key]


def symbolic(types: Sequence[TensorType], heads: bool = False) -> list[TensorType]:
    """The types with every size above 1 replaced by a name; equal sizes get the same one.

    Zero sizes stay, because a name stands for at least 1; with ``heads``, so does the last axis of the first three types.
    """
    names: dict[int, Dim] = {}

    def general(d: DimLike) -> DimLike:
        if not isinstance(d, int) or d < 2:
            return d
        if d not in names:
            names[d] = dims.name(f"n{len(names)}")
        return names[d]

    out = [t.with_shape([d if heads and i < 3 and k == t.rank - 1 else general(d) for k, d in enumerate(t.shape)])
           for i, t in enumerate(types)]
    return out if not any(0 in t.shape for t in types) else list(types)


def one_op(name: str, types: Sequence[TensorType], attrs: dict[str, Any], loc: Any) -> Function:
    """A Graph function of one op."""
    fn = Function(f"eager_{name}", "graph", Block(list(types)))
    results = recorder.infer(name, types, attrs, loc)
    b = Builder(fn.body, loc)
    op = b.op(name, fn.args, results, attrs)
    b.op("return", op.results)
    sizes = dict.fromkeys(n for t in types for d in t.shape if isinstance(d, Dim) for n in sorted(d.names))
    fn.attrs = {"effects": (), "sizes": tuple(sizes), "captured": 0, "constraints": ()}
    return fn
