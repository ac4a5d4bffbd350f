"""The gradient sweep: every op of the table, in both modes, to second order, against central differences and itself.

For each op that maps numbers with derivatives to such numbers, :func:`samples` takes what the op sweep makes of it, in f64 and,
where the op takes complex numbers, complex128.  One program computes, for many of them, with fixed u and v:

* J u by forward mode, J^T v by reverse mode: ``<v, J u> = <J^T v, u>``, and J u is the central difference of the op;
* the derivative of J^T v along u three ways: forward over reverse, reverse over reverse and reverse over forward mode agree
  (second derivatives are symmetric), and are the central difference of J^T v;
* the same mapped over two examples.

The pairing is ``Re(sum(x * y))``.  Central differences come from running the same program beside the point.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import sweep
from sweep import MAKERS, OPS, SHAPES, rng_for, values
from ways import host_compiler

import tessera as ts
from tessera.ir.core import Function, TensorType
from tessera.tracing.recorder import Trace, bind, tracing
from tessera.types import dtypes as dt
from tessera.types.dtypes import DType, as_dtype

Array = np.ndarray
STEP = 1e-6
KINDS = (dt.f64, dt.complex128)


# -- what is differentiable, by the table ------------------------------------------------------------------------------------
def symmetric(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    a = rng.standard_normal(shape)
    return a + np.swapaxes(a, -1, -2)


# Ops that the sweep of values leaves out, because their results are unique only up to signs.
FACTORS = {
    "qr": [((5, 3), {"complete": False}), ((2, 3, 5), {"complete": False}), ((4, 4), {"complete": True})],
    "svd": [((5, 3), {"full": False}), ((2, 3, 5), {"full": False}), ((4, 4), {"full": True})],
    "eigh": [((5, 5), {}), ((2, 3, 3), {})],
}
POINTWISE_SHAPES = ("scalar", "m3x5", "empty2")


def smooth(name: str, d: DType, label: str) -> sweep.Sample:
    """Operands of a pointwise op well inside its domain."""
    shape, rng = sweep.LAYOUTS[label][0], rng_for("smooth", name, d, label)
    low, high = OPS[name].facts.get("domain", (-1.5, 1.5))
    low = max(low, -1.5)
    high = min(high, max(1.5, low + 2))
    margin = (high - low) / 10
    inside = lambda: values(shape, d, rng, None if d.is_complex else (low + margin, high - margin))
    if name == "select":
        return [rng.random(shape) < 0.5, inside(), inside()], {}
    arrays = [inside() for _ in range(sweep.arity(name))]
    if name in ("pow", "floor_div", "mod", "div"):
        positive = values(shape, d, rng, (0.5, 2.0))
        arrays = [positive, arrays[1]] if name == "pow" else [arrays[0], positive]
    return arrays, {}


def samples(name: str, d: DType) -> Iterator[tuple[str, list[Array], dict[str, Any]]]:
    """(label, operands, attributes) of an op on dtype ``d``."""
    op = OPS[name]
    if name in ("convert", "bitcast"):
        x = values((7,), d, rng_for(name, d))
        if name == "convert":
            yield "other", [x], {"dtype": dt.f64 if d.is_complex else dt.complex128}
        yield "same", [x], {"dtype": d if name == "convert" or d.is_complex else dt.int64}
    elif op.pointwise:
        for label in POINTWISE_SHAPES:
            yield label, *smooth(name, d, label)
    elif name in FACTORS:
        for k, (shape, attrs) in enumerate(FACTORS[name]):
            rng = rng_for(name, k)
            yield f"s{k}", [symmetric(shape, rng) if name == "eigh" else rng.standard_normal(shape)], attrs
    else:
        count, make = MAKERS[name]
        for k in range(count):
            rng = rng_for(name, d, k)
            arrays, attrs = make(d, k, rng)
            yield f"s{k}", [values(a.shape, d, rng) if rough(a) or name == "nextafter" else a for a in arrays], attrs


def rough(a: Array) -> bool:
    """Whether there are numbers without neighbours on both sides."""
    return a.dtype.kind in "fc" and not np.isfinite(a).all()


def outcome(name: str, d: DType) -> str:
    """What the table says of an op on dtype ``d``: "not accepted", "discrete" or "smooth"."""
    op = OPS[name]
    if d not in op.dtypes or (name == "bitcast" and d.is_complex):
        return "not accepted"
    _, arrays, attrs = next(samples(name, d))
    types = [TensorType(as_dtype(a.dtype), a.shape) for a in arrays]
    carries = any(t.dtype.is_inexact for t in types) and any(t.dtype.is_inexact for t in op.infer(types, attrs))
    return "smooth" if carries else "discrete"


# Collectives run over a mapped axis: tests/transforms.
LOCAL = sorted(n for n, op in OPS.items() if op.family != "collective" and "no_derivative" not in op.facts)
SMOOTH = [(n, d) for n in LOCAL for d in KINDS if outcome(n, d) == "smooth"]


def test_every_op_has_a_derivative_or_none_by_nature() -> None:
    assert not [n for n, op in OPS.items() if "no_derivative" in op.facts and (op.jvp or op.vjp or op.partials)]
    for name, d in SMOOTH:
        op = OPS[name]
        rules = (op.partials, op.linear, op.jvp, op.vjp, op.expand)
        assert any(r is not None for r in rules), f"{name} on {d}: no derivative, and none declared away"
        assert op.linear is None or op.vjp is not None, f"{name} is linear and lacks its transpose"
    for name, op in OPS.items():
        assert op.forward is None or op.vjp is not None, name


# -- one program for many cases ------------------------------------------------------------------------------------------------
class Case:
    """An op at a point, with a direction u and a cotangent v."""

    def __init__(self, name: str, d: DType, label: str, arrays: Sequence[Array], attrs: dict[str, Any]):
        self.id, self.name, self.attrs = f"{name}-{d}-{label}", name, attrs
        self.arrays = [np.asarray(a) for a in arrays]
        self.types = [TensorType(as_dtype(a.dtype), a.shape) for a in self.arrays]
        self.where = [i for i, t in enumerate(self.types) if t.dtype.is_inexact]
        results = OPS[name].infer(self.types, attrs)
        self.kept = [i for i, t in enumerate(results) if t.dtype.is_inexact]
        rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        self.u = [draw(self.types[i], rng) for i in self.where]
        self.v = [draw(results[i], rng) for i in self.kept]

    def inputs(self, step: float) -> list[Array]:
        moved = {i: self.arrays[i] + step * u for i, u in zip(self.where, self.u, strict=True)}
        return [*[moved.get(i, a) for i, a in enumerate(self.arrays)], *self.u, *self.v]

    def record(self) -> list[Any]:
        """Parameters, and everything that is compared; the lengths of its parts are in ``parts``."""
        trace = ts.tracing.recorder.STATE.trace
        parameter = lambda a: trace.parameter(TensorType(as_dtype(a.dtype), a.shape))
        fixed = [parameter(a) for a in self.arrays]
        u, v = tuple(parameter(a) for a in self.u), tuple(parameter(a) for a in self.v)
        xs = tuple(fixed[i] for i in self.where)

        def f(*moving: Any) -> Any:
            by = dict(zip(self.where, moving, strict=True))
            out = bind(self.name, *[by.get(i, x) for i, x in enumerate(fixed)], **self.attrs)
            out = out if isinstance(out, tuple) else (out,)
            return tuple(out[i] for i in self.kept)

        forward = lambda *xs: ts.jvp(f, xs, u)[1]
        reverse = lambda *xs: ts.vjp(f, *xs)[1](v)
        out, along = ts.jvp(f, xs, u)
        parts = [out, along, reverse(*xs), ts.jvp(reverse, xs, u)[1], ts.vjp(reverse, *xs)[1](u), ts.vjp(forward, *xs)[1](v)]
        pairs = [ts.stack([x, x + STEP * t]) for x, t in zip(xs, u, strict=True)]
        parts += list(ts.vmap(lambda *xs: (forward(*xs), reverse(*xs)))(*pairs))
        self.parts = [len(p) for p in parts]
        return [t for p in parts for t in p]

    def split(self, results: list[Array]) -> list[list[Array]]:
        it = iter(results)
        return [[next(it) for _ in range(n)] for n in self.parts]


def draw(t: TensorType, rng: np.random.Generator) -> Array:
    a = rng.standard_normal(t.shape)
    return np.asarray(a + 1j * rng.standard_normal(t.shape) if t.dtype.is_complex else a, t.dtype.np)


def pairing(xs: Sequence[Array], ys: Sequence[Array]) -> tuple[float, float]:
    """Re(sum(x * y)) and the sum of the magnitudes."""
    return (float(sum(np.sum((x * y).real) for x, y in zip(xs, ys, strict=True))),
            float(sum(np.sum(np.abs(x * y)) for x, y in zip(xs, ys, strict=True))))


def far(got: Sequence[Array], want: Sequence[Array], tolerance: float) -> float:
    """How far beyond the tolerance, relative to the largest magnitude, results are: 0 if nowhere."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype, (g.dtype, g.shape, w.dtype, w.shape)
        scale = tolerance * (1 + np.abs(w).max(initial=0.0))
        error = np.abs(g - w).max(initial=0.0)
        if not error <= scale:
            worst = max(worst, float(error / scale))
    return worst


def complaints(c: Case, at: list[list[Array]], above: list[list[Array]], below: list[list[Array]]) -> list[str]:
    """What is wrong, from the results at the point and beside it."""
    _, along, back, second, *others = at
    out = []
    exact = "straight_through" not in OPS[c.name].facts
    left, size = pairing(c.v, along)
    right = pairing(back, c.u)[0]
    if not abs(left - right) <= (1e-12 if OPS[c.name].linear is not None else 1e-11) * (1 + size):
        out.append(f"<v, Ju> = {left!r}, <J^T v, u> = {right!r}")
    for what, k, got in (("J u", 0, along), ("(J^T v)'", 2, second)):
        with np.errstate(all="ignore"):
            difference = [(a - b) / (2 * STEP) for a, b in zip(above[k], below[k], strict=True)]
        if exact and (error := far(got, difference, 2e-6)):
            out.append(f"{what} is {error:.3g} times the tolerance from its central difference")
    for what, other in zip(("reverse over reverse", "reverse over forward"), others[:2], strict=True):
        if error := far(other, second, 1e-9):
            out.append(f"{what} is {error:.3g} times the tolerance from forward over reverse")
    for what, mapped, parts in (("forward", others[2], (along, above[1])), ("reverse", others[3], (back, above[2]))):
        for k in (0, 1):
            if error := far([m[k] for m in mapped], parts[k], 1e-9):
                out.append(f"vmapped {what} mode, example {k}: {error:.3g} times the tolerance")
    return [f"{c.id} {c.attrs}: {text}" for text in out]


def sweep_of(cases: Sequence[Case]) -> list[str]:
    trace = Trace("gradients")
    with tracing(trace):
        results = [c.record() for c in cases]
        fn: Function = trace.finish([t for r in results for t in r])
    run = host_compiler().compile(fn)
    at = []
    for step in (0.0, STEP, -STEP):
        arrays = [np.ascontiguousarray(a).reshape(a.shape) for c in cases for a in c.inputs(step)]
        it = iter([np.asarray(a) for a in run(arrays)])
        at.append([c.split([next(it) for _ in r]) for c, r in zip(cases, results, strict=True)])
    return [text for c, *three in zip(cases, *at, strict=True) for text in complaints(c, *three)]


def cases(full: bool) -> list[Case]:
    """One sample of each op and dtype, or all."""
    out = []
    for n, (name, d) in enumerate(SMOOTH):
        every = list(samples(name, d))
        chosen = every if full else [every[n % len(every)]]
        out += [Case(name, d, *s) for s in chosen]
    return out


COVER = cases(False)
GROUPS = [COVER[i::8] for i in range(8)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g[0].id}..{g[-1].id}")
def test_derivatives(group: list[Case]) -> None:
    assert not sweep_of(group)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({n for n, _ in SMOOTH}))
def test_derivatives_in_full(name: str) -> None:
    for c in cases(True):
        if c.name == name:
            assert not sweep_of([c])


def test_the_sweep_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses
    wrong = {"sin": {"partials": (lambda x: ts.cos(x.operands[0]) * 1.001,)},
             "reduce_sum": {"vjp": lambda x, gs: [ts.zeros(*x.operands[0].type.shape, dtype=x.operands[0].dtype)]},
             "cumprod": {"jvp": lambda x, t: [t[0]]}}
    for name, facets in wrong.items():
        monkeypatch.setitem(OPS, name, dataclasses.replace(OPS[name], **facets))
        label, arrays, attrs = list(samples(name, dt.f64))[1]
        assert sweep_of([Case(name, dt.f64, label, arrays, attrs)]), name
        monkeypatch.undo()


def test_every_shape_of_pointwise_ops_is_met() -> None:
    assert set(POINTWISE_SHAPES) <= set(SHAPES)
    assert {c.name for c in COVER} == {n for n, _ in SMOOTH}
    assert any(0 in t.shape for c in COVER for t in c.types) and any(t.shape == () for c in COVER for t in c.types)
