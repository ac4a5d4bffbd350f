"""Derivatives of solutions: fixed points (``implicit_diff``), minimisers (``diff_through_opt``), and ``minimise``.

A solution is differentiated through the equation that it solves, not through the steps that found it, so memory does not depend on
their number.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optree

from ..errors import ArgumentError, ShapeError
from ..ops import linalg
from ..ops import pointwise as pw
from ..ops import reduction as rd
from ..tracing.control import while_loop
from ..tracing.recorder import STATE, bind, lift
from ..tracing.tensor import Tensor
from .custom import custom_jvp
from .derivatives import basis, grad, jvp, name_of
from .pullback import replayed
from .replay import record_body
from .vmap import vmap


def solved(matvec: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """The solution of ``matvec(x) = b``, ``matvec`` linear: its matrix is built by ``vmap`` and factored."""
    rows = vmap(matvec)(basis(b.type))
    n = b.type.size
    matrix = bind("transpose", bind("reshape", rows, shape=(n, n)), perm=(1, 0))
    x = linalg.solve(matrix, bind("reshape", b, shape=(n, 1)))
    out: Tensor = bind("reshape", x, shape=b.type.shape)
    return out


# -- fixed points --------------------------------------------------------------------------------------------------------------------
def implicit_diff(solver: Callable[..., Any]) -> Callable[..., Any]:
    """``@ts.implicit_diff``: ``solver(f, x0, …)`` returns a fixed point ``x = f(x)``, differentiated by the implicit function theorem.

    Derivatives reach what ``f`` captures, of tensors that are arguments of ``f``'s maker or of the surrounding function; the start
    ``x0`` has none.  Called with concrete values, the solver's Python runs as it is (``break`` on a tensor's value works).  Inside a traced
    function such a ``break`` has no value to look at: the steps then run in a ``while_loop`` of the solver's ``max_iters``.

    Raises:
        ArgumentError: it decorates no function, or the first argument of a call is none.
    """
    if not callable(solver):
        raise ArgumentError(f"implicit_diff decorates a function, not a {type(solver).__name__}")

    @functools.wraps(solver)
    def solve(f: Any, x0: Any, *args: Any, **kwargs: Any) -> Any:
        if not callable(f):
            raise ArgumentError("a solver under implicit_diff takes the function whose fixed point it finds first",
                                received=type(f).__name__)
        if STATE.trace is None:
            return solver(f, x0, *args, **kwargs)
        found = _held(_found(solver, f, x0, args, kwargs))
        return _attached(f, found)

    return solve


def _held(x: Any) -> Any:
    return optree.tree_map(lambda t: bind("stop_gradient", lift(t)), x)


def _found(solver: Callable[..., Any], f: Callable[..., Any], x0: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The fixed point inside a trace: the solver's steps, where Python can take them, else a loop of its length."""
    from ..errors import TracingError
    trace = STATE.trace
    assert trace is not None
    f = _constant(f, x0)
    ops = len(trace.builder.block.ops)
    try:
        return solver(f, x0, *args, **kwargs)
    except TracingError:
        del trace.builder.block.ops[ops:]
    try:
        bound = inspect.signature(solver).bind(f, x0, *args, **kwargs)
        bound.apply_defaults()
        most = bound.arguments.get("max_iters", bound.arguments.get("max_iterations", 100))
    except (TypeError, ValueError):
        most = 100
    start = lift(x0)
    still = 4 * float(start.dtype.finfo.eps)

    def go_on(x: Tensor, last: Tensor) -> Any:
        return rd.any(pw.abs(x - last) > still * pw.maximum(pw.abs(x), 1.0))

    first = f(start)
    return while_loop(go_on, lambda x, last: (f(x), x), (first, start), max_iterations=max(0, int(most) - 1))[0]


def _constant(f: Callable[..., Any], x0: Any) -> Callable[..., Any]:
    """``f`` with what it captures held constant, so that no derivative keeps the steps of a solver."""
    body = record_body(name_of(f), lambda ts: f(ts[0]), [lift(x0)])
    given = [bind("stop_gradient", t) for t in body.given]

    def held(x: Any) -> Any:
        t = lift(x)
        return body.result(replayed(body.graph, [t, *given])) if t.type == body.graph.args[0].type else f(x)

    return held


def _attached(f: Callable[..., Any], x: Any) -> Any:
    """``x`` with the derivative of the fixed point."""
    point = lift(x)

    def residual(x: Tensor) -> Tensor:
        moved = f(x)
        if moved.type.shape != x.type.shape:
            raise ShapeError("f changes the shape of its argument: it has no fixed point", expected=str(x.type), received=str(moved.type))
        out: Tensor = x - moved
        return out

    return root(residual, point)


def root(residual: Callable[[Tensor], Tensor], found: Tensor) -> Tensor:
    """A solution of ``residual(x) = 0`` with its derivatives, by what the residual captures: dx = -(dF/dx)^-1 dF.

    The rule evaluates both at the solution itself, which has this rule again: derivatives of any order are right.
    """
    body = record_body("residual", lambda ts: residual(ts[0]), [found])

    def at(x: Tensor, given: Sequence[Tensor]) -> Tensor:
        return replayed(body.graph, [x, *given])[0]

    @custom_jvp
    def solution(x: Tensor, *given: Tensor) -> Tensor:
        return bind("stop_gradient", x)  # type: ignore[no-any-return]

    @solution.defjvp
    def rule(primals: Sequence[Tensor], tangents: Sequence[Any]) -> tuple[Tensor, Tensor]:
        start, *given = primals
        x = solution(start, *given)
        moved = jvp(lambda *given: at(x, given), tuple(given), tuple(tangents[1:]))[1]
        return x, -solved(lambda v: jvp(lambda x: at(x, given), (x,), (v,))[1], moved)

    out: Tensor = solution(found, *body.given) if body.given else found
    return out


# -- minimisers ----------------------------------------------------------------------------------------------------------------------
def minimise(fn: Callable[[Any], Any], init: Any, *, max_iterations: int = 200, tol: float | None = None) -> Any:
    """``ts.optimize(fn, init=…)``: a minimiser of a scalar function from a start: damped Newton steps with backtracking.

    Args:
        fn: the objective, of one tensor; its result is one number.
        tol: stop when no element of the gradient is larger (default: 1e-6, for f64 1e-10).

    Returns:
        The point with the least value that was found.  It is differentiated by what it minimises (``diff_through_opt``).
    """
    if not callable(fn):
        raise ArgumentError(f"optimize() minimises a function, not a {type(fn).__name__}", expected="ts.optimize(fn, init=x0)")
    start = lift(init)
    if not start.dtype.is_float:
        start = start.to("f32")
    small = tol if tol is not None else (1e-10 if start.dtype.bits == 64 else 1e-6)

    def program(x0: Tensor) -> Tensor:
        return _newton(fn, x0, max_iterations, small)

    if STATE.trace is not None:
        point = bind("stop_gradient", program(bind("stop_gradient", start)))
        g = grad(fn, batched=False)
        return root(g, point)
    from ..tracing.function import TracedFunction
    return TracedFunction(program, kind="optimize")(start)


def _newton(fn: Callable[[Any], Any], x0: Tensor, most: int, tol: float) -> Tensor:
    g = grad(fn, batched=False)

    def direction(x: Tensor, slope: Tensor, damping: Tensor) -> Tensor:
        return solved(lambda v: jvp(g, (x,), (v,))[1] + damping * v, slope)

    def body(x: Tensor, damping: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new = x - direction(x, g(x), damping)
        better = fn(new) <= fn(x)
        return pw.where(better, new, x), pw.where(better, damping * 0.1, pw.maximum(damping * 10, 1e-3)), k + 1

    def go_on(x: Tensor, damping: Tensor, k: Tensor) -> Any:
        return pw.logical_and(rd.max(pw.abs(g(x))) > tol, damping < 1e12)

    damping = bind("full", shape=(), value=1e-3, dtype=x0.dtype)
    x, _, _ = while_loop(go_on, body, (x0, damping, bind("full", shape=(), value=0, dtype=_int64())), max_iterations=most)
    return x  # type: ignore[no-any-return]


def _int64() -> Any:
    from ..types import dtypes as dt
    return dt.int64


def diff_through_opt(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``@ts.diff_through_opt``: a function that finds a minimum with ``ts.optimize``; derivatives go through the optimum by the implicit
    function theorem: dy/dx = -H_yy^-1 H_yx.
    """
    if not callable(fn):
        raise ArgumentError(f"diff_through_opt decorates a function, not a {type(fn).__name__}")

    @functools.wraps(fn)
    def layer(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return layer


__all__ = ["diff_through_opt", "implicit_diff", "minimise", "solved"]
