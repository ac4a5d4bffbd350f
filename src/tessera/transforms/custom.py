"""Derivative rules of the user's own: ``custom_vjp``, ``custom_jvp``, ``straight_through``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, DerivativeError
from ..ir.core import Function, Op
from ..tracing.recorder import STATE, bind, lift
from ..tracing.tensor import Tensor
from .regions import Region, record_region
from .replay import as_list, zeros
from .reverse import Cotangent, Cotangents, Pull, transposed

_TENSORS = (Tensor, np.ndarray, np.generic, float, complex)


class Arguments:
    """A call's arguments: which leaves are tensors, and how to put them together again."""

    def __init__(self, args: Sequence[Any]):
        whole: Any = tuple(args)
        leaves, self.tree = optree.tree_flatten(whole)
        self.fixed = [None if isinstance(x, _TENSORS) or type(x) is int else (x,) for x in leaves]
        self.tensors = [lift(x) for x, f in zip(leaves, self.fixed, strict=True) if f is None]

    def rebuild(self, tensors: Sequence[Any], fixed: bool = True) -> Any:
        """The arguments with other tensors; with ``fixed`` False, None stands for what is none."""
        it = iter(tensors)
        return optree.tree_unflatten(self.tree, [next(it) if f is None else f[0] if fixed else None for f in self.fixed])


class CustomFunction:
    """A function with a derivative rule; call it like the function."""

    kind = ""

    def __init__(self, fn: Callable[..., Any]):
        if not callable(fn):
            raise ArgumentError(f"{self.kind} decorates a function, not a {type(fn).__name__}")
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.__name__ = str(getattr(fn, "__name__", type(fn).__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if STATE.trace is None:
            return self.fn(*args, **kwargs)
        args = self._positional(args, kwargs)
        call = Arguments(args)
        inputs, call.tensors = call.tensors, []  # the region outlives the trace
        return record_region(self.__name__, self._region(call), lambda ts: self.fn(*call.rebuild(ts)), inputs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _positional(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        try:
            bound = inspect.signature(self.fn).bind(*args, **kwargs)
        except TypeError as e:
            raise ArgumentError(f"{self.__name__}(): {e}", expected=f"{self.__name__}{inspect.signature(self.fn)}") from None
        except ValueError:
            return tuple(args)
        bound.apply_defaults()
        if bound.kwargs:
            raise ArgumentError(f"{self.__name__}() has a rule for positional arguments", received=", ".join(bound.kwargs))
        return bound.args

    def _region(self, call: Arguments) -> Region:
        raise ArgumentError("custom_vjp or custom_jvp makes such functions")


# -- reverse rules -----------------------------------------------------------------------------------------------------------------
class custom_vjp(CustomFunction):
    """``@ts.custom_vjp``: a function whose reverse rule ``f.defvjp(fwd, bwd)`` gives.

    ``fwd(*args)`` returns ``(result, residuals)``; ``bwd(residuals, cotangent)`` returns a cotangent for each argument (a function of
    one argument may return it without a tuple; None is a zero).  Forward mode transposes ``bwd``.
    """

    kind = "custom_vjp"

    def __init__(self, fn: Callable[..., Any]):
        super().__init__(fn)
        self.fwd: Callable[..., Any] | None = None
        self.bwd: Callable[..., Any] | None = None

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> custom_vjp:
        """Give the rule; returns the function."""
        for f in (fwd, bwd):
            if not callable(f):
                raise ArgumentError(f"defvjp() takes two functions, not a {type(f).__name__}", expected="f.defvjp(fwd, bwd)")
        self.fwd, self.bwd = fwd, bwd
        return self

    def _region(self, call: Arguments) -> Region:
        return _VjpRegion(self, call)


class _VjpRegion(Region):
    has_forward = True

    def __init__(self, owner: custom_vjp, call: Arguments):
        super().__init__()
        self.owner, self.call = owner, call
        self.count = sum(f is None for f in call.fixed)

    def run(self, op: Op, xs: Sequence[Tensor]) -> tuple[list[Tensor], Any, Any]:
        """``fwd``: the result's leaves, its tree, residuals."""
        o = self.owner
        if o.fwd is None:
            raise DerivativeError(f"{o.__name__!r} is a custom_vjp function without a rule", loc=op.loc,
                                  hints=[f"Give it one: {o.__name__}.defvjp(fwd, bwd)"])
        made = o.fwd(*self.call.rebuild(xs[:self.count]))
        if not isinstance(made, tuple) or len(made) != 2:
            raise DerivativeError(f"the forward rule of {o.__name__!r} must return (result, residuals)", loc=op.loc,
                                  received=type(made).__name__)
        leaves, tree = optree.tree_flatten(made[0])
        outs = [lift(x) for x in leaves]
        want = [r.type for r in op.results]
        if [t.type for t in outs] != want:
            raise DerivativeError(f"the forward rule of {o.__name__!r} gives another result than the function", loc=op.loc,
                                  expected=", ".join(map(str, want)), received=", ".join(str(t.type) for t in outs))
        return outs, tree, made[1]

    def back(self, op: Op, residuals: Any, tree: Any, gs: Sequence[Cotangent], xs: Sequence[Tensor]) -> list[Cotangent]:
        o = self.owner
        g = optree.tree_unflatten(tree, [zeros(r.type) if t is None else t for t, r in zip(gs, op.results, strict=True)])
        assert o.bwd is not None
        made = o.bwd(residuals, g)
        parts = self.call.tree.num_children
        if not isinstance(made, tuple) or (parts == 1 and len(made) != 1):
            made = (made,)
        if len(made) != parts:
            raise DerivativeError(f"the backward rule of {o.__name__!r} must return a cotangent for each argument", loc=op.loc,
                                  expected=str(parts), received=str(len(made)))
        return self._leaves(op, made, xs)

    def _leaves(self, op: Op, made: tuple[Any, ...], xs: Sequence[Tensor]) -> list[Cotangent]:
        """The cotangents of the tensors among the arguments."""
        out: list[Cotangent] = []
        it = iter(xs)
        fixed = iter(self.call.fixed)
        for i, (g, child) in enumerate(zip(made, self.call.tree.children(), strict=True)):
            n = child.num_leaves
            leaves = [None] * n if g is None else optree.tree_leaves(g, none_is_leaf=True)
            if len(leaves) != n:
                raise DerivativeError(f"the backward rule of {self.owner.__name__!r} gives a cotangent of another structure for "
                                      f"argument {i}", loc=op.loc, expected=str(child), received=str(optree.tree_structure(g)))
            for leaf in leaves:
                if next(fixed) is None:
                    x = next(it)
                    out.append(None if leaf is None or not x.dtype.is_inexact else self._fitting(op, leaf, x, i))
        return out

    def _fitting(self, op: Op, g: Any, x: Tensor, i: int) -> Tensor:
        t = lift(g)
        if t.type.shape != x.type.shape:
            raise DerivativeError(f"the backward rule of {self.owner.__name__!r} gives a cotangent of another shape for argument {i}",
                                  loc=op.loc, expected=str(x.type), received=str(t.type))
        return t.to(x.dtype)

    def reverse(self, r: Any, op: Op, fn: Function, wanted: Sequence[bool]) -> Pull:
        xs = [r.env[v] for v in op.operands]
        with r.at(op.loc):
            outs, tree, residuals = self.run(op, xs)
        r.env.update(zip(op.results, outs, strict=True))

        def pull(gs: list[Cotangent], cts: Cotangents) -> list[Cotangent]:
            return [*self.back(op, residuals, tree, gs, xs), *[None] * (len(xs) - self.count)]

        return pull

    def forward(self, f: Any, op: Op, fn: Function, ts: Sequence[Tensor | None]) -> None:
        xs = [f.env[v] for v in op.operands]
        f.again(op)
        with f.at(op.loc):
            outs, tree, residuals = self.run(op, xs)
            made = transposed(lambda gs: self.back(op, residuals, tree, gs, xs), outs, [t.dtype.is_inexact for t in outs], ts[:self.count])
            f.arrive(op, made)

    def batched(self, flags: Sequence[bool], size: Any, results: Sequence[bool]) -> Region | None:
        return _BatchedVjp(self, list(flags), size, list(results))


class _BatchedVjp(_VjpRegion):
    """The region over a batch: both rules are mapped, and what all examples share gets the sum of their cotangents."""

    def __init__(self, one: _VjpRegion, flags: list[bool], size: Any, results: list[bool]):
        super().__init__(one.owner, one.call)
        self.one, self.flags, self.size, self.results = one, flags, size, results

    def run(self, op: Op, xs: Sequence[Tensor]) -> tuple[list[Tensor], Any, Any]:
        from .vmap import vmap
        dims = tuple([0 if m else None for m in self.flags[:self.count]])
        forms: list[Any] = []

        def example(*xs: Tensor) -> Any:
            made = self.one.owner.fwd(*self.one.call.rebuild(xs))  # type: ignore[misc]
            leaves, tree = optree.tree_flatten(made[0])
            rest, form = optree.tree_flatten(made[1])
            forms[:] = [tree, form]
            return [lift(x) for x in leaves], [lift(x) for x in rest]

        if self.one.owner.fwd is None:
            return super().run(op, xs)
        outs, residuals = vmap(example, in_dims=dims, axis_size=self.size)(*xs[:self.count])
        picked = [t if m else t[0] for t, m in zip(outs, self.results, strict=True)]
        return picked, forms[0], (residuals, forms[1])

    def back(self, op: Op, residuals: Any, tree: Any, gs: Sequence[Cotangent], xs: Sequence[Tensor]) -> list[Cotangent]:
        from .vmap import vmap
        rest, form = residuals
        full = [zeros(r.type) if t is None else t for t, r in zip(gs, op.results, strict=True)]
        n = len(full)
        which: list[int] = []

        def example(*leaves: Tensor) -> Any:
            inner = Op(op.name, (), [t.type for t in leaves[:n]], {}, (), op.loc)
            mine = [x if not m else _Example(x) for x, m in zip(xs, self.flags, strict=True)]
            made = self.one.back(inner, optree.tree_unflatten(form, list(leaves[n:])), tree, list(leaves[:n]), mine)  # type: ignore[arg-type]
            which[:] = [i for i, g in enumerate(made) if g is not None]
            return [made[i] for i in which]

        dims = tuple([0 if m else None for m in self.results] + [0] * len(rest))
        made = vmap(example, in_dims=dims, axis_size=self.size)(*full, *rest)
        out: list[Cotangent] = [None] * self.count
        for i, g in zip(which, made, strict=True):
            out[i] = g if self.flags[i] else bind("reduce_sum", g, axes=(0,))
        return out


class _Example:
    """The type of one example of a batched tensor."""

    def __init__(self, t: Tensor):
        self.type = t.type.with_shape(t.type.shape[1:])
        self.dtype = t.dtype


# -- forward rules -----------------------------------------------------------------------------------------------------------------
class custom_jvp(CustomFunction):
    """``@ts.custom_jvp``: a function whose forward rule ``f.defjvp(rule)`` gives: ``rule(primals, tangents)`` returns
    ``(result, tangent)``, linear in the tangents.  Reverse mode is its transpose.
    """

    kind = "custom_jvp"

    def __init__(self, fn: Callable[..., Any]):
        super().__init__(fn)
        self.rule: Callable[..., Any] | None = None

    def defjvp(self, rule: Callable[..., Any]) -> custom_jvp:
        """Give the rule; returns the function."""
        if not callable(rule):
            raise ArgumentError(f"defjvp() takes a function, not a {type(rule).__name__}", expected="f.defjvp(rule)")
        self.rule = rule
        return self

    def _region(self, call: Arguments) -> Region:
        return _JvpRegion(self, call)


class _JvpRegion(Region):
    has_forward = True

    def __init__(self, owner: custom_jvp, call: Arguments):
        super().__init__()
        self.owner, self.call = owner, call
        self.count = sum(f is None for f in call.fixed)

    def push(self, op: Op, xs: Sequence[Tensor], ts: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The results' tangents."""
        o = self.owner
        if o.rule is None:
            raise DerivativeError(f"{o.__name__!r} is a custom_jvp function without a rule", loc=op.loc,
                                  hints=[f"Give it one: {o.__name__}.defjvp(rule)"])
        xs, ts = xs[:self.count], ts[:self.count]
        full = [(zeros(x.type) if t is None else t) if x.dtype.is_inexact else None for x, t in zip(xs, ts, strict=True)]
        made = o.rule(self.call.rebuild(xs), self.call.rebuild(full, fixed=False))
        if not isinstance(made, tuple) or len(made) != 2:
            raise DerivativeError(f"the rule of {o.__name__!r} must return (result, tangent)", loc=op.loc, received=type(made).__name__)
        leaves = optree.tree_leaves(made[1], none_is_leaf=True)
        want = [r.type for r in op.results]
        outs = [None if x is None else lift(x) for x in leaves]
        if len(outs) != len(want) or any(t is not None and t.type.shape != w.shape for t, w in zip(outs, want, strict=True)):
            raise DerivativeError(f"the rule of {o.__name__!r} gives a tangent of another form than the result", loc=op.loc,
                                  expected=", ".join(map(str, want)),
                                  received=", ".join("None" if t is None else str(t.type) for t in outs))
        return outs

    def forward(self, f: Any, op: Op, fn: Function, ts: Sequence[Tensor | None]) -> None:
        xs = [f.env[v] for v in op.operands]
        f.again(op)
        with f.at(op.loc):
            f.arrive(op, self.push(op, xs, ts))

    def reverse(self, r: Any, op: Op, fn: Function, wanted: Sequence[bool]) -> Pull:
        xs = [r.env[v] for v in op.operands]
        r.again(op)

        def pull(gs: list[Cotangent], cts: Cotangents) -> list[Cotangent]:
            linear = [w and i < self.count for i, w in enumerate(wanted)]
            return transposed(lambda ts: self.push(op, xs, ts), xs, linear, gs)

        return pull

    def batched(self, flags: Sequence[bool], size: Any, results: Sequence[bool]) -> Region | None:
        return _BatchedJvp(self, list(flags), size, list(results))


class _BatchedJvp(_JvpRegion):
    """The region over a batch: the rule is mapped."""

    def __init__(self, one: _JvpRegion, flags: list[bool], size: Any, results: list[bool]):
        super().__init__(one.owner, one.call)
        self.one, self.flags, self.size, self.results = one, flags, size, results

    def push(self, op: Op, xs: Sequence[Tensor], ts: Sequence[Tensor | None]) -> list[Tensor | None]:
        from .vmap import vmap
        n = self.count
        dims = tuple([0 if m else None for m in self.flags[:n]])
        given = [zeros(x.type) if t is None else t for x, t in zip(xs[:n], ts[:n], strict=True)]

        def example(*leaves: Tensor) -> Any:
            kinds = [r.type.with_shape(r.type.shape[1:]) if m else r.type for r, m in zip(op.results, self.results, strict=True)]
            inner = Op(op.name, (), kinds, {}, (), op.loc)
            made = self.one.push(inner, leaves[:n], leaves[n:])
            return [zeros(k) if t is None else t for t, k in zip(made, kinds, strict=True)]

        made = as_list(vmap(example, in_dims=dims * 2, axis_size=self.size)(*xs[:n], *given))
        return [t if m else t[0] for t, m in zip(made, self.results, strict=True)]


# -- straight through ----------------------------------------------------------------------------------------------------------------
def straight_through(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``@ts.straight_through``: forwards as ``fn``, backwards the identity in the first argument (as for rounding in quantisation).

    Raises:
        DerivativeError: when called, the result does not have the shape of the first argument.
    """
    if not callable(fn):
        raise ArgumentError(f"straight_through decorates a function, not a {type(fn).__name__}")
    name = str(getattr(fn, "__name__", type(fn).__name__))

    @functools.wraps(fn)
    def through(*args: Any, **kwargs: Any) -> Any:
        if STATE.trace is None or not args:
            return fn(*args, **kwargs)
        x = lift(args[0])

        def rule(primals: Any, tangents: Any) -> Any:
            y = fn(primals[0], *args[1:], **kwargs)
            return y, tangents[0]

        @custom_jvp
        def call(x: Any) -> Any:
            y = lift(fn(x, *args[1:], **kwargs))
            if y.type.shape != x.type.shape:
                raise DerivativeError(f"straight_through: {name!r} gives another shape than its first argument", expected=str(x.type),
                                      received=str(y.type))
            return y.to(x.dtype) if not y.dtype.is_inexact else y

        call.defjvp(rule)
        return call(x)

    return through


__all__ = ["Arguments", "CustomFunction", "custom_jvp", "custom_vjp", "straight_through"]
