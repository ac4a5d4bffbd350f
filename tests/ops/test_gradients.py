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
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep import MAKERS, OPS, SHAPES, rng_for, values
from ways import host_compiler

import tessera as ts
from tessera.errors import TesseraError
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
            yield f"s{k}", [values(a.shape, d, rng) if rough(a) else a for a in arrays], attrs


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


def declared_away(name: str) -> bool:
    """The stanza says that the op has no derivative (calls for one are errors), or that it is constant in every operand."""
    return "no_derivative" in OPS[name].facts or OPS[name].linear == ()


# Collectives run over a mapped axis: tests/transforms.
LOCAL = sorted(n for n, op in OPS.items() if op.family != "collective" and not declared_away(n))
SMOOTH = [(n, d) for n in LOCAL for d in KINDS if outcome(n, d) == "smooth"]


def test_every_op_has_a_derivative_or_none_by_nature() -> None:
    assert not [n for n, op in OPS.items() if "no_derivative" in op.facts and (op.jvp or op.vjp or op.partials)]
    for name, d in SMOOTH:
        op = OPS[name]
        rules = (op.partials, op.linear, op.jvp, op.vjp, op.expand)
        assert any(r is not None for r in rules), f"{name} on {d}: no derivative, and none declared away"
        assert not op.linear or op.vjp is not None, f"{name} is linear and lacks its transpose"
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
    exact = OPS[c.name].facts.get("derivative") != "straight-through"
    left, size = pairing(c.v, along)
    right = pairing(back, c.u)[0]
    if not abs(left - right) <= (1e-12 if OPS[c.name].linear else 1e-11) * (1 + size):
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


# -- random programs -------------------------------------------------------------------------------------------------------------
STEPS: list[Any] = [
    ts.sin, ts.tanh, lambda x: x * x, lambda x: x / (1 + x * x), lambda x: ts.exp(-x * x), lambda x: ts.softmax(x, 0),
    lambda x: ts.layer_norm(x), lambda x: x - x.mean(1, keepdims=True), lambda x: x.T, lambda x: ts.cumsum(x, 0),
    lambda x: ts.concat([x[1:], x[:1]], 0), lambda x: ts.sort(x, 1), lambda x: x @ ts.tanh(x), lambda x: x + x.max(0, keepdims=True),
    lambda x: ts.gelu(x), lambda x: x[[2, 0, 2, 1]], lambda x: ts.where(x > 0.1, x, 0.5 * x),
    lambda x: ts.logsumexp(x, 1, keepdims=True) + x,
    lambda x: ts.cumprod(0.5 + ts.sigmoid(x), 1), lambda x: ts.linalg.solve(x @ x.T + 9 * ts.eye(4, dtype=ts.f64), x),
]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=2, max_size=6), st.integers(0, 99))
def test_random_programs(steps: list[int], seed: int) -> None:
    """Both modes agree, and differentiating a compiled function is compiling a differentiated one, bit for bit."""

    def f(x: Any) -> Any:
        for k in steps:
            x = STEPS[k](x)
        return x

    loss = lambda x: f(x).sum()
    x, u, v = np.random.default_rng(seed).standard_normal((3, 4, 4))

    def both(x: Any, u: Any, v: Any) -> Any:
        return ts.jvp(f, (x,), (u,))[1], ts.vjp(f, x)[1](v)[0], ts.grad(ts.jit(loss))(x)

    along, back, gradient = (t.numpy() for t in ts.jit(both)(x, u, v))
    (left, size), (right, _) = pairing([v], [along]), pairing([back], [u])
    assert abs(left - right) <= 1e-11 * (1 + size)
    tensor = ts.tensor(x)
    first, second = ts.grad(ts.jit(loss))(tensor).numpy(), ts.jit(ts.grad(loss))(tensor).numpy()
    assert first.tobytes() == second.tobytes()
    np.testing.assert_allclose(gradient, first, rtol=1e-12, atol=1e-12)


# -- particular promises -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(n for n, op in OPS.items() if op.linear and op.family != "collective"))
def test_linear_ops_have_exact_adjoints(name: str) -> None:
    """F033: <A x, y> = <x, A* y> to 1e-12, without a compiler: the Graph interpreter in f64."""
    from tessera.ir.interpret_graph import interpret
    for d in KINDS:
        if d not in OPS[name].dtypes:
            continue
        for sample in samples(name, d):
            c = Case(name, d, *sample)
            trace = Trace("f")
            with tracing(trace):
                given = [trace.parameter(TensorType(as_dtype(np.asarray(a).dtype), np.shape(a))) for a in c.inputs(0.0)]
                n = len(c.arrays)
                xs, u, v = given[:n], given[n:n + len(c.u)], given[n + len(c.u):]

                def f(*moving: Any, xs: Any = xs, c: Case = c) -> Any:
                    by = dict(zip(c.where, moving, strict=True))
                    return bind(c.name, *[by.get(i, x) for i, x in enumerate(xs)], **c.attrs)

                at = [xs[i] for i in c.where]
                fn = trace.finish([ts.jvp(f, tuple(at), tuple(u))[1], *ts.vjp(f, *at)[1](v[0])])
            along, *back = interpret(fn, [np.asarray(a) for a in c.inputs(0.0)])
            (left, size), (right, _) = pairing(c.v, [along]), pairing(back, c.u)
            assert abs(left - right) <= 1e-12 * (1 + size), c.id


LARGE: dict[str, Any] = {
    "softmax": ts.softmax, "log_softmax": ts.log_softmax, "logsumexp": ts.logsumexp, "norm": ts.norm, "sigmoid": ts.sigmoid,
    "softplus": ts.softplus, "log_sigmoid": ts.log_sigmoid, "gelu": ts.gelu, "gelu tanh": lambda x: ts.gelu(x, "tanh"), "silu": ts.silu,
    "tanh": ts.tanh, "layer_norm": ts.layer_norm, "rms_norm": ts.rms_norm, "logaddexp": lambda x: ts.logaddexp(x, -x),
    "cross_entropy": lambda x: ts.cross_entropy(x, ts.tensor([0, 3])), "attention": lambda x: ts.attention(x, x, x, causal=True),
    "hypot": lambda x: ts.hypot(x, x + 1), "elu": ts.elu, "standard deviation": lambda x: ts.std(x, -1),
}


@pytest.mark.parametrize("dtype", [ts.f32, ts.bf16], ids=str)
def test_gradients_of_stable_forms_are_finite(dtype: Any) -> None:
    """E051: at 1e4 and -1e4."""
    x = ts.tensor([[1e4, -1e4, 1e4, 3.0, 0.5], [-1e4, 1.0, 2.0, -1e4, 1e4]]).to(dtype)
    names = list(LARGE)
    made = ts.jit(lambda x: [ts.grad(lambda x, k=k: LARGE[k](x).to(ts.f32).sum())(x) for k in names])(x)
    assert not [k for k, g in zip(names, made, strict=True) if not np.isfinite(g.to(ts.f32).numpy()).all()]


def test_extrema_share_the_derivative_among_ties() -> None:
    x = ts.tensor([[2.0, 1.0, 2.0, 2.0]])
    third = np.float32(1) / 3
    np.testing.assert_array_equal(ts.grad(lambda x: x.max())(x).numpy(), np.array([[third, 0, third, third]], np.float32))
    np.testing.assert_array_equal(ts.grad(lambda x: ts.cummax(x, 1).sum())(x).numpy(), [[4, 0, 0, 0]])
    image = ts.tensor(np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_array_equal(ts.grad(lambda x: ts.max_pool(x, 2).sum())(image).numpy(), np.full((1, 1, 2, 2), 0.25))


@pytest.mark.parametrize(("sizes", "window", "stride", "padding"), [
    ((11, 13), 3, 2, 1), ((6, 7), 3, 1, 1), ((10, 9), 2, 3, 0), ((9, 8), 5, 2, 2), ((12, 12), 3, 2, 0), ((4, 4), 3, 3, 1)], ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_overlapping_windows_give_their_maxima_their_cotangents(sizes: Any, window: int, stride: int, padding: int, ties: bool) -> None:
    """Window by window in numpy: each shares its cotangent among its maxima."""
    rng = rng_for(sizes, window, stride)
    x = rng.standard_normal((2, 3, *sizes))
    x = np.round(x) if ties else x
    out = ts.max_pool(ts.tensor(x), window, stride, padding)
    g = rng.standard_normal(out.shape)
    wide = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2), constant_values=-np.inf)
    want = np.zeros_like(wide)
    for i, j in np.ndindex(*out.shape[2:]):
        at = (..., slice(i * stride, i * stride + window), slice(j * stride, j * stride + window))
        held = wide[at] == wide[at].max((2, 3), keepdims=True)
        want[at] += held * (g[..., i, j] / held.sum((2, 3)))[..., None, None]
    got = ts.grad(lambda x: (ts.max_pool(x, window, stride, padding) * ts.tensor(g)).sum())(ts.tensor(x)).numpy()
    np.testing.assert_allclose(got, want[..., padding:padding + sizes[0], padding:padding + sizes[1]], atol=1e-13)


def test_products_with_zeros() -> None:
    """No division: the derivative of a product by its only zero is the product of the others."""
    x = np.array([2.0, 0.0, 3.0])
    np.testing.assert_array_equal(ts.grad(ts.prod)(ts.tensor(x)).numpy(), [0, 6, 0])
    np.testing.assert_array_equal(ts.grad(ts.grad(ts.prod))(ts.tensor(x)).numpy(), [[0, 3, 0], [3, 0, 2], [0, 2, 0]])
    np.testing.assert_array_equal(ts.grad(lambda x: ts.cumprod(x, 0).sum())(ts.tensor(x)).numpy(), [1, 8, 0])


def test_transposed_products_are_fast_products() -> None:
    """Both cotangents of every layout of a batched product are ``matmul`` templates, and nothing is transposed by a kernel."""
    from tessera.machine import host_cpu
    from tessera.scheduling import schedule
    from tessera.transforms.pipeline import optimize
    layouts = {"NN": ((2, 64, 96), (2, 96, 80), 2, 1), "NT": ((2, 64, 96), (2, 80, 96), 2, 2), "TN": ((2, 96, 64), (2, 96, 80), 1, 1),
               "TT": ((2, 96, 64), (2, 80, 96), 1, 2)}
    for layout, (xs, ys, a, b) in layouts.items():
        trace = Trace("f")
        with tracing(trace):
            x, y, g = (trace.parameter(TensorType(dt.f32, s)) for s in (xs, ys, (2, 64, 80)))
            f = lambda x, y, a=a, b=b: bind("dot_general", x, y, lhs_contract=(a,), rhs_contract=(b,), lhs_batch=(0,), rhs_batch=(0,))
            fn = trace.finish(list(ts.vjp(f, x, y)[1](g)))
        ops = [op for op in schedule(optimize(fn), host_cpu()).walk() if op.name in ("kernel", "template")]
        assert [op.attrs.get("template") for op in ops] == ["matmul", "matmul"], (layout, [op.attrs.get("name") for op in ops])


def test_decompositions_that_fix_no_factor_say_so() -> None:
    for f, text in ((lambda x: ts.linalg.qr(x, "complete")[0].sum(), "complete QR"), (lambda x: ts.linalg.svd(x)[0].sum(), "full singular"),
                    (lambda x: ts.real(ts.linalg.eig(x @ x.T)[0]).sum(), "no derivative rule")):
        with pytest.raises(TesseraError, match=text):
            ts.grad(f)(ts.ones(4, 3))


def test_singular_values_alone_may_be_equal() -> None:
    np.testing.assert_allclose(ts.grad(lambda x: ts.linalg.svdvals(x).sum())(ts.eye(3, dtype=ts.f64)).numpy(), np.eye(3), atol=1e-14)


def test_reparameterised_samples_carry_derivatives() -> None:
    from tessera.ops import random as rn
    key = ts.tensor(np.array([7, 3], np.uint64))
    draw_one = lambda mean, std: rn.normal(key, 0, (50,), ts.f64, mean, std).sum()
    noise = (rn.normal(key, 0, (50,), ts.f64).numpy()).sum()
    mean, std = ts.tensor(np.float64(0.3)), ts.tensor(np.float64(2.0))
    np.testing.assert_allclose([float(g) for g in ts.grad(draw_one, argnums=(0, 1))(mean, std)], [50, noise], rtol=1e-12)


# -- symbolic sizes ----------------------------------------------------------------------------------------------------------------
SYMBOLIC: dict[str, Any] = {
    "reshape": lambda x: x.reshape(-1) ** 2, "transpose": lambda x: x.T ** 2, "slice": lambda x: x[1:, ::2] ** 2,
    "pad": lambda x: ts.pad(x, [(1, 2), (0, 1)], 3.0) ** 2, "flip": lambda x: ts.flip(x, 0) * x,
    "concat": lambda x: ts.concat([x, x * x], 1),
    "broadcast": lambda x: x.sum(0, keepdims=True) * x, "prod": lambda x: x.prod(1), "max": lambda x: x.max(0) ** 2,
    "cumsum": lambda x: ts.cumsum(x, 1) ** 2, "cumprod": lambda x: ts.cumprod(x, 0), "cummax": lambda x: ts.cummax(x, 0) ** 2,
    "logsumexp": lambda x: ts.logsumexp(x, 1), "matmul": lambda x: x @ x.T, "take": lambda x: ts.take(x, ts.tensor([0, 1, 0]), 0) ** 2,
    "along": lambda x: ts.take_along_axis(x, ts.argsort(x, 1), 1) ** 2, "sort": lambda x: ts.sort(x, 0) * x,
    "scatter": lambda x: ts.scatter(x, ts.tensor([1, 0]), x[:2] * 2, 0) ** 2, "softmax": lambda x: ts.softmax(x, 0) * x,
    "log_softmax": lambda x: ts.log_softmax(x, 1) ** 2, "layer_norm": lambda x: ts.layer_norm(x) ** 2,
    "rms_norm": lambda x: ts.rms_norm(x) ** 2,
    "cross_entropy": lambda x: ts.cross_entropy(x, ts.argmax(x, 1)),
    "attention": lambda x: ts.attention(x[:, :4], x[:, 1:5], x[:, :4], causal=True),
    "conv": lambda x: ts.conv(x.reshape(1, 1, *x.shape), ts.ones(2, 1, 3, 3, dtype=ts.f64), padding=1) ** 2,
    "max_pool": lambda x: ts.max_pool(x.reshape(1, 1, *x.shape), 2, 1) ** 2,
    "avg_pool": lambda x: ts.avg_pool(x.reshape(1, 1, *x.shape), 2, 1) ** 2,
    "solve": lambda x: ts.linalg.solve(x @ x.T + ts.eye(x.shape[0], dtype=ts.f64), x), "det": lambda x: ts.linalg.det(x @ x.T),
    "cholesky": lambda x: ts.linalg.cholesky(x @ x.T + ts.eye(x.shape[0], dtype=ts.f64)), "einsum": lambda x: ts.einsum("st,ut->su", x, x),
}


@pytest.mark.parametrize("group", [list(SYMBOLIC)[i::4] for i in range(4)], ids=str)
def test_rules_of_symbolic_sizes(group: list[str]) -> None:
    """One program for all sizes gives what programs for these sizes give."""
    from ways import traced
    both = lambda x, u: [g for k in group for g in (ts.jvp(SYMBOLIC[k], (x,), (u,))[1], ts.grad(lambda x, k=k: SYMBOLIC[k](x).sum())(x))]
    shape = (ts.types.dims.name("S"), ts.types.dims.name("T"))
    x, u = np.random.default_rng(1).standard_normal((2, 4, 6))
    runs = [host_compiler().compile(traced(both, (x, u), s)[0])([x, u]) for s in (None, (shape, shape))]
    for k, (a, b) in enumerate(zip(*runs, strict=True)):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-11, atol=1e-11, err_msg=group[k // 2])
