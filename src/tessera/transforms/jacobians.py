"""``jacfwd``, ``jacrev``, ``hessian``, ``linearize``, and gradients for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optree

from ..errors import DerivativeError
from ..ir.core import TensorType
from ..tracing.function import TracedFunction
from ..tracing.recorder import STATE, bind
from ..tracing.tensor import Tensor
from .derivatives import Inputs, Pulled, Pushed, as_tuple, basis, derived, matched, name_of, needs_function
from .pullback import replayed, residual_body
from .replay import zeros
from .vmap import vmap


def jacrev(fn: Callable[..., Any], argnums: Any = 0, *, holomorphic: bool = False) -> Any:
    """``jacrev(f)`` is the Jacobian of ``f``, a row at a time in reverse mode (for few results of many inputs).

    The result has the form of ``f``'s result, at each leaf the form of the argument, and there a tensor of shape
    result + input.

    Args:
        holomorphic: ``fn`` is a holomorphic function of complex numbers; the entries are its complex derivatives.

    Raises:
        DerivativeError: by integers; of complex results that are not said to be holomorphic.
    """
    needs_function("jacrev", fn)

    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = Inputs("jacrev", name_of(fn), args, argnums)
        pulled = Pulled(name_of(fn), lambda leaves: fn(*inputs.rebuild(leaves), **kwargs), inputs.leaves, inputs.held)
        _check_complex("jacrev", name_of(fn), holomorphic, inputs.leaves, pulled.outs)
        return pulled.tree([_rows(pulled, inputs, k) for k in range(len(pulled.outs))])

    return derived(fn, call, "jacrev")


def _check_complex(what: str, name: str, holomorphic: bool, inputs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    """Raises DerivativeError where complex numbers have no Jacobian without a word, or that word is wrong."""
    if holomorphic:
        if not all(t.dtype.is_complex for t in (*inputs, *[o for o in outs if o.dtype.is_inexact])):
            raise DerivativeError(
                f"{what}(holomorphic=True) of {name!r} takes complex numbers to complex numbers", expected="complex arguments and result",
                received=", ".join(str(t.type) for t in (*inputs, *outs)),
                hints=["Leave holomorphic out: derivatives of real functions need no word", "Convert the argument: x.to(ts.complex64)"])
        return
    one_sided = inputs if what == "jacfwd" else outs  # where a basis of real directions would miss half of the derivative
    found = next((t for t in one_sided if t.dtype.is_complex), None)
    if found is not None:
        raise DerivativeError(
            f"{what}() of {name!r} has complex {'arguments' if what == 'jacfwd' else 'results'}", received=str(found.type),
            sentence="A function of complex numbers has one derivative only where it is holomorphic; else each part has its own.",
            hints=["Say so if the function is holomorphic: holomorphic=True",
                   "Differentiate the parts as real numbers: ts.view_as_real and ts.view_as_complex"])


def _rows(pulled: Pulled, inputs: Inputs, k: int) -> Any:
    out, n = pulled.outs[k], len(pulled.outs)
    if not out.dtype.is_inexact:
        own = [_block(None, out.type, t.type) for t in inputs.leaves]
        return inputs.shaped(own, [_block(None, out.type, t.type) for t in inputs.held])

    def row(g: Tensor) -> Any:
        own, held = pulled.back([g if i == k else None for i in range(n)])
        return [*own, *held]

    found = [bind("reshape", t, shape=(*out.type.shape, *t.type.shape[1:])) for t in vmap(row)(basis(out.type))]
    return inputs.shaped(found[:len(inputs.leaves)], found[len(inputs.leaves):])


def _block(t: Tensor | None, out: TensorType, of: TensorType) -> Tensor:
    """A Jacobian's block with the input's axes last."""
    if t is None:
        kind = out.dtype if out.dtype.is_inexact else of.dtype
        return zeros(TensorType(kind, (*out.shape, *of.shape)))
    r, n = len(of.shape), len(out.shape)
    t = bind("reshape", t, shape=(*of.shape, *out.shape))
    moved: Tensor = bind("transpose", t, perm=(*range(r, r + n), *range(r)))
    return moved


def jacfwd(fn: Callable[..., Any], argnums: Any = 0, *, holomorphic: bool = False) -> Any:
    """``jacfwd(f)`` is the Jacobian of ``f``, a column at a time in forward mode (for many results of few inputs).

    The result has the form of :func:`jacrev`'s.

    Args:
        holomorphic: ``fn`` is a holomorphic function of complex numbers; the entries are its complex derivatives.

    Raises:
        DerivativeError: by integers, or by a module (use ``jacrev``); by complex numbers without a word that ``fn`` is holomorphic.
    """
    needs_function("jacfwd", fn)

    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = Inputs("jacfwd", name_of(fn), args, argnums)
        if inputs.held or not inputs.leaves:
            raise DerivativeError("jacfwd() differentiates by tensors, not by a module's parameters", hints=["Use ts.jacrev"])
        columns: list[list[Tensor]] = []
        pushed: list[Pushed] = []
        for i, x in enumerate(inputs.leaves):

            def column(t: Tensor, i: int = i) -> Any:
                tangents: list[Tensor | None] = [t if j == i else None for j in range(len(inputs.leaves))]
                made = Pushed(name_of(fn), lambda leaves: fn(*inputs.rebuild(leaves), **kwargs), inputs.leaves, tangents)
                pushed.append(made)
                return made.tangents

            columns.append(list(vmap(column)(basis(x.type))))
        made = pushed[-1]
        _check_complex("jacfwd", name_of(fn), holomorphic, inputs.leaves, made.outs)
        blocks = [inputs.shaped([_block(columns[i][k] if made.outs[k].dtype.is_inexact else None, made.outs[k].type, x.type)
                                 for i, x in enumerate(inputs.leaves)], []) for k in range(len(made.outs))]
        return made.tree(blocks)

    return derived(fn, call, "jacfwd")


def hessian(fn: Callable[..., Any], argnums: Any = 0, *, holomorphic: bool = False) -> Any:
    """``hessian(f)`` is the matrix of second derivatives of a scalar function: forward mode over reverse mode.

    Args:
        holomorphic: ``fn`` is a holomorphic function of complex numbers; the entries are its complex second derivatives.
    """
    from .derivatives import grad
    needs_function("hessian", fn)
    inner = grad(fn, argnums, batched=False, holomorphic=holomorphic)
    out = jacfwd(inner, argnums, holomorphic=holomorphic)
    out.__name__ = f"hessian_{name_of(fn)}".replace("<lambda>", "f")
    return out


def linearize(fn: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """``(f(*primals), tangent_map)``: the map takes tangents, one for each primal, to the result's tangent.

    What does not depend on tangents is computed once, however often the map is called.

    Raises:
        DerivativeError, ShapeError: when the map is called: tangents do not match the primals.
    """
    needs_function("linearize", fn)
    whole: Any = tuple(primals)
    made: list[Any] = []

    def forward(*primals: Any) -> Any:
        given: Any = tuple(primals)
        leaves, ones, tree = matched("linearize", given, given)
        at = [i for i, t in enumerate(ones) if t is not None]
        outs: list[Pushed] = []

        def push(ts: list[Tensor]) -> list[Tensor]:
            tangents: list[Tensor | None] = [None] * len(leaves)
            for i, t in zip(at, ts, strict=True):
                tangents[i] = t
            return outer_pushed(tangents).tangents

        def outer_pushed(tangents: list[Tensor | None]) -> Pushed:
            outs.append(Pushed(name_of(fn), lambda xs: fn(*optree.tree_unflatten(tree, xs)), leaves, tangents))
            return outs[-1]

        first = outer_pushed([None] * len(leaves))
        body, residuals = residual_body("tangent_map", push, [leaves[i] for i in at])
        made[:] = [body, at, first]
        return list(first.outs), residuals

    if STATE.trace is not None:
        outs, residuals = forward(*primals)
    else:
        forward.__name__ = f"linearize_{name_of(fn)}".replace("<lambda>", "f")
        outs, residuals = TracedFunction(forward, kind="linearize")(*primals)
    body, at, first = made

    def run(ts: list[Tensor], residuals: list[Tensor]) -> Any:
        return replayed(body, [*ts, *residuals])

    program = TracedFunction(run, kind="linearize")

    def tangent_map(*tangents: Any) -> Any:
        _, ts, _ = matched("tangent_map", whole, as_tuple("tangent_map", tangents, "tangents"))
        chosen = [ts[i] for i in at]
        found = program(chosen, residuals) if STATE.trace is None else run(chosen, residuals)
        return first.tree(found)

    return first.tree(outs), tangent_map


def per_example_grad(fn: Callable[..., Any], argnums: Any = 0, in_dims: Any = None) -> Any:
    """The gradient of ``fn(params, *example)`` for each example: ``vmap`` of ``grad``.

    Args:
        argnums: by which argument.
        in_dims: as for ``vmap``; None: the arguments in ``argnums`` are shared, all others run over the examples along axis 0.
    """
    from .derivatives import grad
    needs_function("per_example_grad", fn)
    inner = grad(fn, argnums)
    chosen: Sequence[int] = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def call(*args: Any) -> Any:
        dims = tuple(None if i in chosen or i - len(args) in chosen else 0 for i in range(len(args))) if in_dims is None else in_dims
        return vmap(inner, in_dims=dims)(*args)

    call.__name__ = f"per_example_grad_{name_of(fn)}".replace("<lambda>", "f")
    return TracedFunction(call, kind="per_example_grad")


def gradient_penalty(discriminator: Callable[..., Any], real: Any, fake: Any, weight: float = 10.0, *, alpha: Any = None) -> Any:
    """The WGAN-GP penalty ``weight * mean((|grad D(x)| - 1)**2)`` at random points between ``real`` and ``fake``.

    Args:
        discriminator: gives one score for each example along axis 0.
        alpha: the mixing weights, ``[B, 1, …]``; None: uniform in [0, 1), one for each example.

    Gulrajani et al., Improved Training of Wasserstein GANs, 2017, equation 3.
    """
    from .. import random
    from ..ops import pointwise, reduction
    from .derivatives import grad
    rank = len(real.shape)
    if alpha is None:
        alpha = random.uniform((real.shape[0], *(1,) * (rank - 1)), dtype=real.dtype)
    mixed = alpha * real + (1 - alpha) * fake
    g = grad(discriminator, batched=True)(mixed)
    length = pointwise.sqrt(reduction.sum(g * g, tuple(range(1, rank))))
    return weight * reduction.mean((length - 1) ** 2)


__all__ = ["gradient_penalty", "hessian", "jacfwd", "jacrev", "linearize", "per_example_grad"]
