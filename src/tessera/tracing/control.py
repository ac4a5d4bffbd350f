"""Control flow that stays in the program: ``cond``, ``while_loop``, ``scan``, ``fori_loop``.

Each takes Python functions over trees (tuples, lists, dicts) of tensors.  In a traced function they become one op with a
nested block per function; with concrete values, ``cond`` and ``while_loop`` simply run Python, and ``scan`` runs a compiled
program.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, DTypeError, ShapeError, TesseraError, TracingError
from ..ir.core import Block, TensorType
from ..types import dtypes as dt
from ..types.dims import DimLike, format_dim
from .identity import identity
from .recorder import STATE, Trace, bind, lift
from .tensor import Tensor

_VALUES = (Tensor, bool, int, float, complex, np.ndarray, np.generic)


def _tree(out: Any, what: str) -> tuple[list[Any], Any]:
    leaves, tree = optree.tree_flatten(out)
    for leaf in leaves:
        if not isinstance(leaf, _VALUES):
            raise TracingError(f"{what} holds a {type(leaf).__name__}", received=repr(leaf)[:80],
                               sentence="Values that pass through control flow are tensors or numbers, in tuples, lists or dicts.")
    return leaves, tree


def _types(leaves: Sequence[Tensor]) -> list[TensorType]:
    return [t.type for t in leaves]


def _describe(types: Sequence[TensorType]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"


def _truth(p: Any, what: str) -> Tensor:
    p = lift(p)
    if p.type.shape != ():
        raise ShapeError(f"the condition of {what} has shape {list(p.shape)}", expected="bool[]", received=str(p.type),
                         hints=["Reduce it: condition.any() or condition.all()", "Choose elementwise: ts.where(condition, a, b)"])
    return p if p.dtype is dt.bool_ else p != 0  # type: ignore[no-any-return]


def _like(number: Any, t: Tensor) -> Tensor:
    from .indexing import _fitting
    return _fitting(t, number)


# -- cond ----------------------------------------------------------------------------------------------------------------
def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
    """``true_fn(*operands)`` where ``pred`` holds, else ``false_fn(*operands)``; only the chosen one runs.

    Both give the same structure of the same types.

    Raises:
        TracingError, ShapeError, DTypeError: the branches differ.
    """
    for f in (true_fn, false_fn):
        if not callable(f):
            raise ArgumentError(f"cond() takes two functions, not a {type(f).__name__}", hints=[
                "Write ts.cond(p, lambda: a, lambda: b)", "Choose elementwise: ts.where(p, a, b)"])
    trace = STATE.trace
    if trace is None or isinstance(pred, bool | np.bool_):
        return true_fn(*operands) if bool(pred) else false_fn(*operands)
    p = _truth(pred, "cond()")
    yes, no = Block([]), Block([])
    with trace.builder.at(yes):
        a, tree_a = _tree(true_fn(*operands), "the result of cond()'s first branch")
    with trace.builder.at(no):
        b, tree_b = _tree(false_fn(*operands), "the result of cond()'s second branch")
    if tree_a != tree_b:
        raise TracingError("the branches of cond() give different structures", expected=str(tree_a), received=str(tree_b),
                           hints=["Return the same tuples, lists and keys from both functions"])
    left, right = [], []
    for x, y in zip(a, b, strict=True):
        with trace.builder.at(yes):
            first = lift(x) if isinstance(x, Tensor) or not isinstance(y, Tensor) else _like(x, y)
        with trace.builder.at(no):
            second = lift(y) if isinstance(y, Tensor) or not isinstance(x, Tensor) else _like(y, x)
        left.append(first)
        right.append(second)
    _same("cond()", _types(left), _types(right), "the first branch gives", "the second")
    trace.terminate(yes, left)
    trace.terminate(no, right)
    out = trace.structured("cond", [p], _types(left), {}, [yes, no])
    return optree.tree_unflatten(tree_a, out)


def _same(what: str, want: Sequence[TensorType], got: Sequence[TensorType], one: str, other: str) -> None:
    for i, (x, y) in enumerate(zip(want, got, strict=True)):
        if x == y:
            continue
        kind: type[TesseraError] = DTypeError if x.shape == y.shape else ShapeError
        raise kind(f"{what}: {one} {x} for value {i}, {other} {y}", expected=_describe(want), received=_describe(got),
                   sentence="Both must have equal shapes and dtypes, because the program has one type for the result.",
                   hints=[f"Convert it: x.to({x.dtype})" if x.shape == y.shape else "Reshape or broadcast one of them"])


# -- loops ---------------------------------------------------------------------------------------------------------------
def while_loop(cond: Any = None, body: Callable[..., Any] | None = None, init: Any = None, *, max_iterations: int | None = None) -> Any:
    """Repeat ``carry = body(*carry)`` while ``cond(*carry)``, from ``init``; returns the last carry.

    A tuple or list ``init`` is unpacked into arguments; anything else is one argument.  Used as a decorator, it marks a
    function that contains such a loop and leaves it as it is.

    Args:
        max_iterations: the loop stops after so many iterations in any case; with such a bound it has a reverse-mode derivative.

    Raises:
        TracingError, ShapeError, DTypeError: ``body`` changes the structure, shape or dtype of the carry.
        ArgumentError: ``max_iterations`` is not a count.
    """
    if body is None and init is None and callable(cond):
        @functools.wraps(cond)
        def routine(*args: Any, **kwargs: Any) -> Any:
            return cond(*args, **kwargs)
        return routine
    if not callable(cond) or not callable(body):
        raise ArgumentError("while_loop() takes two functions and a start", expected="while_loop(cond=, body=, init=)")
    if max_iterations is not None and (not isinstance(max_iterations, int) or isinstance(max_iterations, bool) or max_iterations < 0):
        raise ArgumentError("max_iterations of while_loop() is a number of iterations", expected="an integer, 0 or more",
                            received=repr(max_iterations)[:80])
    unpack = isinstance(init, tuple | list)

    def apply(f: Callable[..., Any], carry: Any) -> Any:
        return f(*carry) if unpack else f(carry)

    trace = STATE.trace
    if trace is None:
        carry, left = init, -1 if max_iterations is None else max_iterations
        while left and bool(apply(cond, carry)):
            carry, left = apply(body, carry), left - 1
            if unpack and not isinstance(carry, tuple | list):
                carry = (carry,)
        return carry
    return _traced_while(trace, apply, cond, body, init, unpack, max_iterations)


def _traced_while(trace: Trace, apply: Any, cond: Any, body: Any, init: Any, unpack: bool, most: int | None) -> Any:
    leaves, tree = _tree(init, "the init of while_loop()")
    start = [lift(x) for x in leaves]
    weak = [not isinstance(x, Tensor | np.ndarray) for x in leaves]
    sites = trace.sites

    def attempt(counted: bool) -> Any:
        """Record the loop; with ``counted``, the iteration number is a further carry for random ops."""
        first = [*start, bind("constant", value=np.asarray(0, np.int64))] if counted else start
        types = _types(first)
        test, test_args = trace.block(types)
        step, step_args = trace.block(types)
        n = len(start)
        with trace.builder.at(test):
            p = _truth(apply(cond, optree.tree_unflatten(tree, test_args[:n])), "while_loop()")
            if most is not None:
                p = bind("logical_and", p, test_args[n] < most)
        with trace.builder.at(step), trace.iterating(step_args[n] if counted else None):
            out = apply(body, optree.tree_unflatten(tree, step_args[:n]))
            if unpack and not isinstance(out, tuple | list):
                out = (out,)
            new, new_tree = _tree(out, "the result of while_loop()'s body")
            if len(new) != n or (new_tree != tree and not unpack):
                raise TracingError("the body of while_loop() changes the structure of the carry", expected=str(tree),
                                   received=str(new_tree))
            results = [_like(v, s) if not isinstance(v, Tensor) else v for v, s in zip(new, start)]
            if counted:
                results.append(step_args[n] + 1)
        promoted = _widened(start, results, weak)
        if promoted is not None:
            start[:] = promoted
            trace.sites = sites
            return attempt(counted)
        _carry("while_loop()", types, _types(results))
        if trace.sites != sites and not counted:
            trace.sites = sites
            return attempt(True)
        trace.terminate(test, [p])
        trace.terminate(step, results)
        attrs = {} if most is None else {"max_iterations": most}
        return trace.structured("while", first, types, attrs, [test, step])[:n]

    return optree.tree_unflatten(tree, attempt(most is not None))


def _widened(start: Sequence[Tensor], results: Sequence[Tensor], weak: list[bool]) -> list[Tensor] | None:
    """Numbers in ``init`` take the dtype that the body gives them (once); None when nothing changes."""
    out, changed = list(start), False
    for i, (s, r) in enumerate(zip(start, results)):
        if weak[i] and r.dtype is not s.dtype and r.type.shape == s.type.shape:
            out[i], weak[i], changed = s.to(r.dtype), False, True
    return out if changed else None


def _carry(what: str, want: Sequence[TensorType], got: Sequence[TensorType]) -> None:
    for i, (x, y) in enumerate(zip(want, got, strict=True)):
        if x == y:
            continue
        if x.shape != y.shape:
            raise ShapeError(f"the body of {what} changes carry {i} from {x} to {y}", expected=str(x), received=str(y),
                             sentence="A loop's carry keeps its shape, because the program has one type for it.",
                             hints=["Start with a carry of the final shape", "Write into a buffer of full size: buf[i] = v"])
        raise DTypeError(f"the body of {what} changes carry {i} from {x.dtype} to {y.dtype}", expected=str(x),
                         received=str(y), sentence="A loop's carry keeps its dtype.",
                         hints=[f"Start with that dtype: init.to({y.dtype})", f"Convert in the body: v.to({x.dtype})"])


def fori_loop(lower: Any, upper: Any, body: Callable[[Any, Any], Any], init: Any) -> Any:
    """``carry = body(i, carry)`` for ``i`` from ``lower`` to ``upper - 1``; returns the last carry.

    With integers for bounds a traced loop is a :func:`scan`, which has a reverse-mode derivative.
    """
    if STATE.trace is not None and all(isinstance(n, int) and not isinstance(n, bool) for n in (lower, upper)) and upper > lower:
        numbers = bind("iota", shape=(upper - lower,), axis=0, dtype=dt.int64)
        return scan(lambda carry, i: (body(i, carry), None), init, numbers + lower if lower else numbers)[0]
    packed = while_loop(lambda i, carry: i < upper, lambda i, carry: (i + 1, body(i, carry)), (lower, init))
    return packed[1]


# -- scan ----------------------------------------------------------------------------------------------------------------
def scan(step: Callable[[Any, Any], Any], init: Any = None, xs: Any = None, length: Any = None, reverse: bool = False) -> Any:
    """``carry, y = step(carry, x)`` along axis 0 of ``xs``; returns the last carry and the stacked ``y``.

    ``@ts.scan`` turns a cell into such a function: ``cell(init, xs)``.

    Args:
        init: the first carry; xs: a tree of tensors with equal sizes along axis 0, or None with ``length``.
        reverse: run from the end to the start.

    Raises:
        TracingError, ShapeError, DTypeError: a carry changes its type, or ``xs`` have unequal lengths.
    """
    if not callable(step):
        raise ArgumentError(f"scan() takes a function first, not a {type(step).__name__}",
                            expected="scan(step, init, xs)")
    if init is None and xs is None and length is None:
        @functools.wraps(step)
        def sequence(init: Any, xs: Any = None, length: Any = None, reverse: bool = False) -> Any:
            return scan(step, init, xs, length, reverse)
        return sequence
    trace = STATE.trace
    if trace is not None:
        return _traced_scan(trace, step, init, xs, length, reverse)
    return _scan_program(step, length, bool(reverse))(init, xs)


_scans: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()
SCANS = 64  # compiled steps of eager loops that are kept


def _scan_program(step: Any, length: Any, reverse: bool) -> Any:
    """The compiled loop of ``step``, kept for functions that compute alike."""
    known = identity(step)
    key = None if known is None or not isinstance(length, int | None) else (known[0], length, reverse)
    if key is not None and key in _scans:
        _scans.move_to_end(key)
        return _scans[key][0]
    from .function import TracedFunction

    def run(init: Any, xs: Any) -> Any:
        return scan(step, init, xs, length, reverse)

    run.__name__ = f"scan_{getattr(step, '__name__', 'step')}".replace("<lambda>", "step")
    made = TracedFunction(run)
    if key is not None and known is not None:
        _scans[key] = made, known[1]
        if len(_scans) > SCANS:
            _scans.popitem(last=False)
    return made


def _length_of(streams: Sequence[Tensor], length: Any) -> DimLike:
    from .creation import shape_from
    n: DimLike | None = None if length is None else shape_from(((length,),), "scan")[0]
    for t in streams:
        if not t.type.shape:
            raise ShapeError("scan() runs along axis 0, and a scalar has none", received=str(t.type))
        if n is None:
            n = t.type.shape[0]
        if t.type.shape[0] != n:
            raise ShapeError(f"scan() over sequences of unequal lengths: {format_dim(n)} and {format_dim(t.type.shape[0])}",
                             expected=f"{format_dim(n)} along axis 0", received=str(t.type))
    if n is None:
        raise ArgumentError("scan() without xs needs length=", expected="scan(step, init, length=n)")
    return n


def _traced_scan(trace: Trace, step: Any, init: Any, xs: Any, length: Any, reverse: bool) -> Any:
    carry_leaves, carry_tree = _tree(init, "the init of scan()")
    x_leaves, x_tree = _tree(xs, "the xs of scan()")
    start = [lift(x) for x in carry_leaves]
    weak = [not isinstance(x, Tensor | np.ndarray) for x in carry_leaves]
    streams = [lift(x) for x in x_leaves]
    n, sites = _length_of(streams, length), trace.sites
    y_tree: Any = None

    def attempt(counted: bool) -> list[Tensor]:
        nonlocal y_tree
        inputs = [*streams, bind("iota", shape=(n,), axis=0, dtype=dt.int64)] if counted else streams
        slices = [TensorType(t.dtype, t.type.shape[1:]) for t in inputs]
        block, args = trace.block([*_types(start), *slices])
        k = len(start)
        with trace.builder.at(block), trace.iterating(args[-1] if counted else None):
            out = step(optree.tree_unflatten(carry_tree, args[:k]), optree.tree_unflatten(x_tree, args[k:k + len(streams)]))
            if not isinstance(out, tuple) or len(out) != 2:
                raise TracingError("the step of scan() must return (carry, y)", received=type(out).__name__,
                                   hints=["Return (carry, None) when there is nothing to stack"])
            new, new_tree = _tree(out[0], "the carry of scan()")
            if new_tree != carry_tree:
                raise TracingError("the step of scan() changes the structure of the carry", expected=str(carry_tree),
                                   received=str(new_tree))
            results = [v if isinstance(v, Tensor) else _like(v, s) for v, s in zip(new, start)]
            y_leaves, y_tree = _tree(out[1], "the result of scan()")
            ys = [lift(y) for y in y_leaves]
        promoted = _widened(start, results, weak)
        if promoted is not None:
            start[:] = promoted
            trace.sites = sites
            return attempt(counted)
        _carry("scan()", _types(start), _types(results))
        if trace.sites != sites and not counted:
            trace.sites = sites
            return attempt(True)
        trace.terminate(block, [*results, *ys])
        types = [*_types(start), *[TensorType(y.dtype, (n, *y.type.shape)) for y in ys]]
        attrs = {"carry": k, "length": n, "reverse": bool(reverse)}
        return trace.structured("scan", [*start, *inputs], types, attrs, [block])

    out = attempt(False)
    k = len(start)
    return optree.tree_unflatten(carry_tree, out[:k]), optree.tree_unflatten(y_tree, out[k:])


__all__ = ["cond", "fori_loop", "scan", "while_loop"]
