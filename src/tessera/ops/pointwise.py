"""Pointwise ops: one stanza an op, and with it the function that users call.

A family helper (:func:`unary`, :func:`binary`, :func:`compare` …) enters the primitive into the table and returns the
user's function of the same name, which promotes dtypes, broadcasts shapes and binds the primitive.  Primitives take
operands of one dtype and one shape; their numpy meaning evaluates 16-bit and smaller floats in f32 and rounds once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dtypes import DType
from ..types.promotion import to_inexact
from . import batch_rules as br
from . import complex_functions as cf
from . import meaning as m
from .operands import aligned, as_tensor, convert, promoted, scalar, spread
from .rules import (
    BOOL,
    COMPLEX,
    EVERY,
    FLOATS,
    FP8,
    INTS,
    NUMBERS,
    REAL,
    accept,
    expect_operands,
    lifted,
    same_dtype,
    same_shape,
)
from .table import Applied, Attrs, Bound, Partial, primitive

Fn = Callable[..., Any]


def _declare(name: str, arity: int, fn: Fn, dtypes: Sequence[DType], *, result: DType | None = None, ulp: float = 0.0,
             domain: tuple[float, float] | None = None, doc: str = "", reference: Fn | None = None,
             cancels: float = 0.0, checked: bool = False, partials: tuple[Partial | None, ...] | None = None,
             jvp: Fn | None = None, vjp: Fn | None = None) -> None:
    """Enter a pointwise op on operands of one dtype.

    ``result`` is its dtype where that differs; ``cancels`` bounds the error by so many epsilons of the operands' magnitude
    (products and quotients of complex numbers cancel too); ``checked``: it has a run-time check that can be left out.
    A function with a meaning in ``complex_functions`` takes complex numbers too, and is written in that meaning there.
    """
    complex_form = cf.FUNCTIONS.get(name)
    if complex_form is not None:
        dtypes = (*dtypes, *COMPLEX)

    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        expect_operands(name, types, arity)
        accept(name, types, dtypes)
        kind = same_dtype(name, types)
        return (TensorType(result or kind, same_shape(name, types)),)

    def terms(types: Sequence[TensorType], attrs: Attrs) -> float:
        return cancels + 4.0 * (types[0].dtype.is_complex and name in CANCELLING)

    primitive(name, family="pointwise", infer=infer, reference=reference or lifted(fn), dtypes=tuple(dtypes),
              bound=Bound(ulp, terms), pointwise=True, partials=partials, jvp=jvp, vjp=vjp, doc=doc or f"Elementwise {name}.",
              facts={**({"domain": domain} if domain else {}), **({"attrs": ("checked",)} if checked else {}),
                     **({"expands": _on_complex, "written": complex_form} if complex_form else {})})


CANCELLING = frozenset({"mul", "div", "pow", "sqrt", "reciprocal"})  # of complex numbers, whose parts cancel or are rounded apart


def _on_complex(attrs: Attrs, types: Sequence[TensorType]) -> bool:
    return types[0].dtype.is_complex


def named(fn: Fn, name: str, doc: str) -> Fn:
    """``fn`` under the name and with the documentation that users see."""
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    return fn


def unary(name: str, fn: Fn, dtypes: Sequence[DType], ulp: float = 0.0, *, ints: str = "accept", **facets: Any) -> Fn:
    """A function of one tensor.  ``ints``: what integers do: ``accept``, ``f32`` (convert) or ``keep`` (identity)."""
    _declare(name, 1, fn, dtypes, ulp=ulp, **facets)

    def function(x: Any) -> Any:
        x = as_tensor(x)
        if not x.dtype.is_inexact:
            if ints == "keep":
                return x
            if ints == "f32":
                x = convert(x, dt.f32)
        return bind(name, x)

    return named(function, name, facets.get("doc") or f"Elementwise ``{name}``; integers are converted to f32."
                 if ints == "f32" else facets.get("doc") or f"Elementwise ``{name}``.")


def binary(name: str, fn: Fn, dtypes: Sequence[DType], ulp: float = 0.0, *, ints: str = "accept",
           on_bool: str | None = None, **facets: Any) -> Fn:
    """A function of two tensors, promoted and broadcast.  ``on_bool``: the op that stands for it on two bools."""
    _declare(name, 2, fn, dtypes, ulp=ulp, **facets)

    def function(x: Any, y: Any) -> Any:
        x, y = aligned(name, x, y)
        if not x.dtype.is_inexact:
            if ints == "f32":
                x, y = convert(x, dt.f32), convert(y, dt.f32)
            elif on_bool is not None and x.dtype is dt.bool_:
                return bind(on_bool, x, y)
        return bind(name, x, y)

    return named(function, name, facets.get("doc") or f"Elementwise ``{name}`` with promotion and broadcasting.")


def compare(name: str, fn: Fn, dtypes: Sequence[DType]) -> Fn:
    """A comparison: operands are promoted, the result is bool."""
    _declare(name, 2, fn, dtypes, result=dt.bool_)

    def function(x: Any, y: Any) -> Any:
        return bind(name, *aligned(name, x, y))

    return named(function, name, f"Elementwise comparison ``{name}``; comparisons with NaN are false, ``ne`` is true.")


def predicate(name: str, fn: Fn) -> Fn:
    """A question about one float; integers and bools answer it as finite numbers, complex numbers by their parts."""
    _declare(name, 1, fn, FLOATS + FP8, result=dt.bool_)

    def function(x: Any) -> Any:
        x = as_tensor(x)
        if x.dtype.is_complex:
            both = logical_and if name == "isfinite" else logical_or
            return both(bind(name, real(x)), bind(name, imag(x)))
        return bind(name, x if x.dtype.is_float else convert(x, dt.f32))

    return named(function, name, f"Elementwise ``{name}``.")


def logical(name: str, fn: Fn, arity: int) -> Fn:
    """An op on truth values; other dtypes are compared with zero first."""
    _declare(name, arity, fn, BOOL)

    def function(*xs: Any) -> Any:
        if len(xs) != arity:
            raise TypeError(f"{name}() takes {arity} tensor{'s' * (arity > 1)}, not {len(xs)}")
        return bind(name, *spread(name, *[convert(as_tensor(x), dt.bool_) for x in xs]))

    return named(function, name, f"Elementwise ``{name}`` of truth values.")


# -- what the derivatives below are made of ----------------------------------------------------------------------------
def one(x: Applied) -> int:
    return 1


def minus_one(x: Applied) -> int:
    return -1


def first(x: Applied) -> Any:
    return x.operands[0]


def second(x: Applied) -> Any:
    return x.operands[1]


def result(x: Applied) -> Any:
    return x.out


def _one_minus_square(x: Any) -> Any:
    """1 - x*x without cancellation near 1."""
    return mul(sub(1.0, x), add(1.0, x))


def _acosh_slope(x: Applied) -> Any:
    """1/sqrt((x - 1)(x + 1)); of complex numbers with two roots, for left of the imaginary axis their product is not the product's root."""
    low, high = sub(x.operands[0], 1.0), add(x.operands[0], 1.0)
    return mul(rsqrt(low), rsqrt(high)) if low.dtype.is_complex else rsqrt(mul(low, high))


def _chosen(which: int) -> Partial:
    """Of two values the one that was taken.  A tie is shared where both vary; beside a constant it counts as not taken."""

    def partial(x: Applied) -> Any:
        mine, other = x.operands[which], x.operands[1 - which]
        taken = convert((gt if x.name == "maximum" else lt)(mine, other), mine.dtype)
        return add(taken, mul(0.5, convert(eq(mine, other), mine.dtype))) if all(x.wanted) else taken

    return partial


def _div_jvp(x: Applied, ts: Sequence[Any]) -> list[Any]:
    by = x.operands[1]
    if ts[1] is None:
        return [div(ts[0], by)]
    moved = mul(x.out, ts[1])
    return [div(neg(moved) if ts[0] is None else sub(ts[0], moved), by)]


def _div_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    g = div(gs[0], x.operands[1])
    return [g if x.wanted[0] else None, neg(mul(g, x.out)) if x.wanted[1] else None]


def _pow_by_base(x: Applied) -> Any:
    """y * x**(y - 1), and 0 for y = 0 even where x is 0; there alone the exponent is another, so that the derivative by y is right."""
    base, y = x.operands
    return mul(y, pow(base, where(logical_and(eq(y, 0), eq(base, 0)), 1.0, sub(y, 1.0))))


def _pow_by_exponent(x: Applied) -> Any:
    """log(x) * x**y, and 0 for x = 0."""
    return mul(log(where(eq(x.operands[0], 0), 1.0, x.operands[0])), x.out)


def _over_length(x: Applied, i: int) -> Any:
    """x / hypot(x, y), and 0 at the origin."""
    return div(x.operands[i], where(eq(x.out, 0), 1.0, x.out))


def _by_angle(x: Applied, part: Any) -> Any:
    return div(part, add(square(x.operands[0]), square(x.operands[1])))


# B(2k) of the asymptotic series of trigamma.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def _trigamma(x: Any) -> Any:
    """The derivative of digamma: reflection below 1/2, recurrence up by 10, then the asymptotic series.

    Abramowitz & Stegun 6.4.6, 6.4.7, 6.4.12.
    """
    low = lt(x, 0.5)
    z = where(low, sub(1.0, x), x)
    total: Any = None
    for k in range(10):
        term = reciprocal(square(add(z, float(k)) if k else z))
        total = term if total is None else add(total, term)
    w = reciprocal(add(z, 10.0))
    square_w, series = mul(w, w), mul(0.0, w)
    for b in reversed(_BERNOULLI):
        series = mul(square_w, add(series, b))
    total = add(total, mul(w, add(series, add(1.0, mul(0.5, w)))))
    reflected = square(div(math.pi, sin(mul(math.pi, where(low, x, 0.5)))))
    return where(low, sub(reflected, total), total)


FP = FLOATS + FP8
ORDERED = BOOL + REAL

# -- arithmetic --------------------------------------------------------------------------------------------------------
add = binary("add", np.add, NUMBERS, on_bool="logical_or", doc="Elementwise sum; integers wrap around.", partials=(one, one))
sub = binary("sub", np.subtract, NUMBERS, doc="Elementwise difference; integers wrap around.", partials=(one, minus_one))
mul = binary("mul", np.multiply, NUMBERS, on_bool="logical_and", doc="Elementwise product; integers wrap around.",
             partials=(second, first))
div = binary("div", m.div, FP, ints="f32", doc="True division; integers are converted to f32.",
             jvp=_div_jvp, vjp=_div_vjp)
floor_div = binary("floor_div", m.floor_div, REAL, checked=True,
                   doc="Quotient rounded down; an integer divisor 0 is a run-time error.", partials=(None, None))
mod = binary("mod", m.mod, REAL, checked=True,
             doc="Remainder with the divisor's sign; an integer divisor 0 is a run-time error.",
             partials=(one, lambda x: neg(floor(div(*x.operands)))))
neg: Fn = unary("neg", np.negative, NUMBERS, doc="Elementwise negation; integers wrap around.", partials=(minus_one,))
_abs = unary("abs", np.abs, REAL, partials=(lambda x: sign(x.operands[0]),))
sign: Fn = unary("sign", m.sign, REAL, doc="-1, 0 or 1; NaN stays NaN.", partials=(None,))
minimum = binary("minimum", np.minimum, REAL, on_bool="logical_and", doc="The lesser value; NaN wins.",
                 partials=(_chosen(0), _chosen(1)))
maximum = binary("maximum", np.maximum, REAL, on_bool="logical_or", doc="The greater value; NaN wins.",
                 partials=(_chosen(0), _chosen(1)))
reciprocal = unary("reciprocal", lambda x: 1 / x, FP, ints="f32", doc="1/x, correctly rounded.",
                   partials=(lambda x: neg(mul(x.out, x.out)),))
copysign: Fn = binary("copysign", m.copysign, FP, ints="f32", doc="The magnitude of x with the sign of y.",
                  partials=(lambda x: mul(copysign(1.0, x.operands[0]), copysign(1.0, x.operands[1])), None))
_declare("fma", 3, m.fma, FP, doc="a*b + c with one rounding.", partials=(second, first, one))

# -- rounding ----------------------------------------------------------------------------------------------------------
floor: Fn = unary("floor", np.floor, FP, ints="keep", doc="The greatest integer not above x.", partials=(None,))
ceil = unary("ceil", np.ceil, FP, ints="keep", doc="The least integer not below x.", partials=(None,))
round = unary("round", np.rint, FP, ints="keep", doc="The nearest integer, ties to even.", partials=(None,))
trunc = unary("trunc", np.trunc, FP, ints="keep", doc="The integer part.", partials=(None,))

# -- comparisons and logic ---------------------------------------------------------------------------------------------
eq = compare("eq", np.equal, ORDERED + COMPLEX)
ne = compare("ne", np.not_equal, ORDERED + COMPLEX)
lt = compare("lt", np.less, ORDERED)
le = compare("le", np.less_equal, ORDERED)
gt = compare("gt", np.greater, ORDERED)
ge = compare("ge", np.greater_equal, ORDERED)
isnan = predicate("isnan", np.isnan)
isinf = predicate("isinf", np.isinf)
isfinite = predicate("isfinite", np.isfinite)
logical_and = logical("logical_and", np.logical_and, 2)
logical_or = logical("logical_or", np.logical_or, 2)
logical_xor = logical("logical_xor", np.logical_xor, 2)
logical_not = logical("logical_not", np.logical_not, 1)

# -- bits --------------------------------------------------------------------------------------------------------------
bitwise_and = binary("bitwise_and", np.bitwise_and, INTS, on_bool="logical_and")
bitwise_or = binary("bitwise_or", np.bitwise_or, INTS, on_bool="logical_or")
bitwise_xor = binary("bitwise_xor", np.bitwise_xor, INTS, on_bool="logical_xor")
_declare("bitwise_not", 1, np.invert, INTS)
shift_left = binary("shift_left", m.shift_left, INTS, doc="Bits moved up; a count outside [0, bits) gives 0.")
shift_right = binary("shift_right", m.shift_right, INTS,
                     doc="Bits moved down, with the sign for signed types; a count outside [0, bits) gives 0 or the sign.")

# -- exponentials, logarithms, powers ------------------------------------------------------------------------------------
exp = unary("exp", np.exp, FP, 2, ints="f32", domain=(-80, 80), partials=(result,))
exp2 = unary("exp2", np.exp2, FP, 2, ints="f32", domain=(-120, 120), partials=(lambda x: mul(x.out, math.log(2)),))
expm1 = unary("expm1", np.expm1, FP, 3, ints="f32", domain=(-20, 80), partials=(lambda x: add(x.out, 1.0),))
log = unary("log", np.log, FP, 2, ints="f32", domain=(0, 1e4), partials=(lambda x: reciprocal(x.operands[0]),))
log2 = unary("log2", np.log2, FP, 2, ints="f32", domain=(0, 1e4), partials=(lambda x: div(1 / math.log(2), x.operands[0]),))
log10 = unary("log10", np.log10, FP, 2, ints="f32", domain=(0, 1e4), partials=(lambda x: div(1 / math.log(10), x.operands[0]),))
log1p = unary("log1p", m.log1p, FP, 3, ints="f32", domain=(-0.99, 1e4),
              partials=(lambda x: reciprocal(add(x.operands[0], 1.0)),))
sqrt = unary("sqrt", np.sqrt, FP, ints="f32", domain=(0, 1e4), doc="Square root, correctly rounded.",
             partials=(lambda x: div(0.5, x.out),))
rsqrt = unary("rsqrt", m.rsqrt, FP, 2, ints="f32", domain=(1e-3, 1e4),
              partials=(lambda x: mul(-0.5, div(x.out, x.operands[0])),))
cbrt = unary("cbrt", np.cbrt, FP, 3, ints="f32", domain=(-1e4, 1e4),
             partials=(lambda x: div(1.0, mul(3.0, mul(x.out, x.out))),))
_declare("pow", 2, np.power, FP, ulp=4, partials=(_pow_by_base, _pow_by_exponent))
hypot = binary("hypot", np.hypot, FP, 3, ints="f32", partials=(lambda x: _over_length(x, 0), lambda x: _over_length(x, 1)))
logaddexp = binary("logaddexp", np.logaddexp, FP, 6, ints="f32", cancels=2, doc="log(exp(x) + exp(y)) without overflow.",
                   partials=(lambda x: sigmoid(sub(*x.operands)), lambda x: sigmoid(sub(*x.operands[::-1]))))

# -- trigonometry ------------------------------------------------------------------------------------------------------
sin = unary("sin", np.sin, FP, 2, ints="f32", domain=(-100, 100), partials=(lambda x: cos(x.operands[0]),))
cos: Fn = unary("cos", np.cos, FP, 2, ints="f32", domain=(-100, 100), partials=(lambda x: neg(sin(x.operands[0])),))
tan = unary("tan", np.tan, FP, 4, ints="f32", domain=(-100, 100), partials=(lambda x: add(mul(x.out, x.out), 1.0),))
asin = unary("asin", np.arcsin, FP, 4, ints="f32", domain=(-1, 1),
             partials=(lambda x: rsqrt(_one_minus_square(x.operands[0])),))
acos = unary("acos", np.arccos, FP, 4, ints="f32", domain=(-1, 1),
             partials=(lambda x: neg(rsqrt(_one_minus_square(x.operands[0]))),))
atan = unary("atan", np.arctan, FP, 4, ints="f32", domain=(-50, 50),
             partials=(lambda x: reciprocal(add(square(x.operands[0]), 1.0)),))
atan2 = binary("atan2", np.arctan2, FP, 4, ints="f32", doc="The angle of the point (y, x), given as atan2(y, x).",
               partials=(lambda x: _by_angle(x, x.operands[1]), lambda x: _by_angle(x, neg(x.operands[0]))))
sinh = unary("sinh", np.sinh, FP, 4, ints="f32", domain=(-10, 10), partials=(lambda x: cosh(x.operands[0]),))
cosh: Fn = unary("cosh", np.cosh, FP, 4, ints="f32", domain=(-10, 10), partials=(lambda x: sinh(x.operands[0]),))
tanh = unary("tanh", np.tanh, FP, 4, ints="f32", domain=(-10, 10), partials=(lambda x: _one_minus_square(x.out),))
asinh = unary("asinh", np.arcsinh, FP, 4, ints="f32", domain=(-1e3, 1e3),
              partials=(lambda x: rsqrt(add(square(x.operands[0]), 1.0)),))
acosh = unary("acosh", np.arccosh, FP, 4, ints="f32", domain=(1, 1e3), partials=(_acosh_slope,))
atanh = unary("atanh", np.arctanh, FP, 4, ints="f32", domain=(-0.99, 0.99),
              partials=(lambda x: reciprocal(_one_minus_square(x.operands[0])),))

# -- special functions -------------------------------------------------------------------------------------------------
erf = unary("erf", m.erf, FP, 4, ints="f32", domain=(-4, 4),
            partials=(lambda x: mul(2 / math.sqrt(math.pi), exp(neg(square(x.operands[0])))),))
erfc = unary("erfc", m.erfc, FP, 8, ints="f32", domain=(-4, 6),
             partials=(lambda x: mul(-2 / math.sqrt(math.pi), exp(neg(square(x.operands[0])))),))
erfinv = unary("erfinv", m.erfinv, FP, 8, ints="f32", domain=(-0.99, 0.99),
               partials=(lambda x: mul(math.sqrt(math.pi) / 2, exp(square(x.out))),))
sigmoid: Fn = unary("sigmoid", m.sigmoid, FP, 4, ints="f32", domain=(-20, 20), doc="1 / (1 + exp(-x)).",
                partials=(lambda x: mul(x.out, sub(1.0, x.out)),))
lgamma = unary("lgamma", m.lgamma, FP, 32, ints="f32", domain=(3, 100), doc="log |Gamma(x)|.",
               partials=(lambda x: digamma(x.operands[0]),))
digamma: Fn = unary("digamma", m.digamma, FP, 32, ints="f32", domain=(2, 100), doc="The derivative of lgamma.",
                partials=(lambda x: _trigamma(x.operands[0]),))


# -- ops whose operands differ in dtype ----------------------------------------------------------------------------------
def _select_infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    expect_operands("select", types, 3)
    accept("select", types[:1], BOOL)
    kind = same_dtype("select", types[1:])
    return (TensorType(kind, same_shape("select", types)),)


def _select_jvp(x: Applied, ts: Sequence[Any]) -> list[Any]:
    return [where(x.operands[0], *[0.0 if t is None else t for t in ts[1:]])]


def _select_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    p, g = x.operands[0], gs[0]
    return [None, where(p, g, 0.0) if x.wanted[1] else None, where(p, 0.0, g) if x.wanted[2] else None]


primitive("select", family="pointwise", infer=_select_infer, jvp=_select_jvp, vjp=_select_vjp,
          reference=lambda p, a, b: np.asarray(np.where(p, a, b), a.dtype),
          dtypes=EVERY, pointwise=True, doc="a where p holds, else b.", facts={"mixed": ("bool", "T", "T")})


def _bitcast_infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    expect_operands("bitcast", types, 1)
    src, dst = types[0].dtype, attrs["dtype"]
    if src.bits != dst.bits or (src is not dst and (dt.bool_ in (src, dst) or src.is_complex or dst.is_complex)):
        raise DTypeError(f"bitcast does not read {src} as {dst}", expected=f"a real dtype of {src.bits} bits",
                         received=f"{dst} ({dst.bits} bits)", hints=["Use .to(...) to convert values"])
    return (types[0].with_dtype(dst),)


primitive("bitcast", family="pointwise", infer=_bitcast_infer, reference=lambda x, dtype: x.view(dtype.np), dtypes=EVERY,
          partials=(None,), pointwise=True, doc="The same bits read as another dtype of equal width.", facts={"attrs": ("dtype",)})


# -- ops that are written in others -----------------------------------------------------------------------------------------
_BITS = {dt.f16: dt.int16, dt.bf16: dt.int16, dt.f32: dt.int32, dt.f64: dt.int64}


def _two_infer(name: str, dtypes: Sequence[DType]) -> Fn:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        expect_operands(name, types, 2)
        accept(name, types, dtypes)
        return (TensorType(same_dtype(name, types), same_shape(name, types)),)

    return infer


def _nextafter_expand(x: Any, y: Any) -> Any:
    """Counting in the bits: away from zero is up, and zero's neighbours are the least subnormal numbers."""
    kind = _BITS[x.dtype]
    bits = bind("bitcast", x, dtype=kind)
    step = where(eq(lt(x, y), gt(x, 0)), add(bits, 1), sub(bits, 1))
    least = where(gt(y, 0), scalar(1, kind), scalar(kind.iinfo.min + 1, kind))
    moved = bind("bitcast", where(eq(x, 0), least, step), dtype=x.dtype)
    return where(logical_or(isnan(x), isnan(y)), add(x, y), where(eq(x, y), y, moved))


def _integer_pow_expand(x: Any, y: Any) -> Any:
    """Repeated squaring, one step for each bit of the exponent."""
    kind = x.dtype
    result, base = bind("full", shape=x.type.shape, value=1, dtype=kind), x
    for bit in range(kind.bits - (kind.kind == "int")):
        taken = ne(bitwise_and(y, 1 << bit), 0)
        result = where(taken, mul(result, base), result)
        base = mul(base, base)
    if kind.kind == "uint":
        return result
    odd = where(ne(bitwise_and(y, 1), 0), scalar(-1, kind), scalar(1, kind))
    unit = where(eq(x, 1), scalar(1, kind), where(eq(x, -1), odd, scalar(0, kind)))
    return where(lt(y, 0), unit, result)


primitive("nextafter", family="composite", infer=_two_infer("nextafter", FLOATS), reference=m.nextafter, dtypes=FLOATS,
          batch=br.leading, linear=(),
          expand=_nextafter_expand, doc="The representable neighbour of x in the direction of y.")
primitive("integer_pow", family="composite", infer=_two_infer("integer_pow", INTS), reference=m.power, dtypes=INTS,
          batch=br.leading,
          expand=_integer_pow_expand, doc="x**y of integers, wrapping around; x**-n is the truncated quotient 1/x**n.")


def nextafter(x: Any, y: Any) -> Any:
    """The representable neighbour of x in the direction of y."""
    x, y = aligned("nextafter", x, y)
    kind = to_inexact(x.dtype)
    return bind("nextafter", convert(x, kind), convert(y, kind))


# -- complex numbers -----------------------------------------------------------------------------------------------------
def _part(name: str, fn: Fn, vjp: Fn) -> None:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        expect_operands(name, types, 1)
        accept(name, types, COMPLEX)
        return (types[0].with_dtype(types[0].dtype.real),)

    primitive(name, family="pointwise", infer=infer, reference=lambda z: np.asarray(fn(z)).copy(), dtypes=COMPLEX,
              linear=True, vjp=vjp, pointwise=True, doc=f"The {name} part of complex numbers.")


_part("real", np.real, lambda x, gs: [complex_(gs[0], 0.0)])
_part("imag", np.imag, lambda x, gs: [complex_(0.0, neg(gs[0]))])  # the pairing is Re(g * z), without a conjugate


def _complex_infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    expect_operands("complex", types, 2)
    accept("complex", types, (dt.f32, dt.f64))
    kind = dt.complex128 if same_dtype("complex", types) is dt.f64 else dt.complex64
    return (TensorType(kind, same_shape("complex", types)),)


primitive("complex", family="pointwise", infer=_complex_infer, reference=m.make_complex, dtypes=(dt.f32, dt.f64),
          linear=True, vjp=lambda x, gs: [real(gs[0]), neg(imag(gs[0]))], pointwise=True, doc="re + i*im.")


# -- functions that are more than their primitive --------------------------------------------------------------------------
def where(condition: Any, x: Any, y: Any) -> Any:
    """``x`` where ``condition`` holds, else ``y``; shapes broadcast, x and y promote."""
    a, b = promoted("where", x, y)
    return bind("select", *spread("where", convert(as_tensor(condition), dt.bool_), a, b))


def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """``x`` limited to [min, max]; either end may be None.  A float bound with an integer tensor gives f32."""
    if min is not None:
        x = maximum(x, min)
    return x if max is None else minimum(x, max)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a*b + c with one rounding."""
    xs = aligned("fma", a, b, c)
    return bind("fma", *[convert(x, to_inexact(x.dtype)) for x in xs])


def pow(x: Any, y: Any) -> Any:
    """x to the power y.  Constant whole exponents become products; of integers, x**-n is the truncated quotient 1/x**n."""
    if isinstance(y, int | float) and not isinstance(y, bool):
        x = as_tensor(x)
        if isinstance(y, float) or x.dtype is dt.bool_:
            x = convert(x, to_inexact(x.dtype))
        special = _POWERS.get(float(y))
        if special is not None and (y >= 0 or x.dtype.is_inexact) and (y != 0.5 or x.dtype.is_inexact):
            return special(x)
        if isinstance(y, int) and y >= 0 and not x.dtype.is_float:
            return _whole_power(x, y)
    x, y = aligned("pow", x, y)
    return bind("integer_pow" if x.dtype.is_integer else "pow", x, y)


def _whole_power(x: Any, n: int) -> Any:
    """Repeated squaring."""
    result: Any = None
    while n:
        if n & 1:
            result = x if result is None else mul(result, x)
        n >>= 1
        x = mul(x, x) if n else x
    return bind("full", shape=x.type.shape, value=1, dtype=x.dtype) if result is None else result


_POWERS: dict[float, Fn] = {
    1.0: lambda x: x, 2.0: lambda x: mul(x, x), 3.0: lambda x: mul(mul(x, x), x), -1.0: lambda x: div(1, x),
    0.5: lambda x: sqrt(x),
}


def bitwise_not(x: Any) -> Any:
    """Every bit flipped; truth values negated."""
    x = as_tensor(x)
    return bind("logical_not" if x.dtype is dt.bool_ else "bitwise_not", x)


def square(x: Any) -> Any:
    """x*x."""
    return mul(x, x)


def real(x: Any) -> Any:
    """The real part; real tensors are returned as they are."""
    x = as_tensor(x)
    return bind("real", x) if x.dtype.is_complex else x


def imag(x: Any) -> Any:
    """The imaginary part; zeros for real tensors."""
    x = as_tensor(x)
    return bind("imag", x) if x.dtype.is_complex else bind("full", shape=x.type.shape, value=0, dtype=x.dtype)


def complex_(re: Any, im: Any) -> Any:
    """re + i*im from two real tensors."""
    a, b = aligned("complex", re, im)
    wide = dt.f64 if a.dtype is dt.f64 else dt.f32
    return bind("complex", convert(a, wide), convert(b, wide))


def abs(x: Any) -> Any:
    """The absolute value; the least integer stays itself.  Complex numbers: the magnitude, a real tensor."""
    x = as_tensor(x)
    return hypot(real(x), imag(x)) if x.dtype.is_complex else _abs(x)


def angle(x: Any) -> Any:
    """The argument of complex numbers, in (-pi, pi], a real tensor; of real numbers 0, or pi below zero."""
    x = as_tensor(x)
    x = x if x.dtype.is_inexact else convert(x, dt.f32)
    return atan2(imag(x), real(x))


def conj(x: Any) -> Any:
    """The complex conjugate."""
    x = as_tensor(x)
    return complex_(real(x), neg(imag(x))) if x.dtype.is_complex else x


def bitcast(x: Any, dtype: Any) -> Any:
    """The same bits read as another dtype of equal width.

    Raises:
        DTypeError: the widths differ.
    """
    return bind("bitcast", as_tensor(x), dtype=dt.as_dtype(dtype))


def isclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    """Where |x - y| <= atol + rtol*|y|; equal infinities are close, NaN only with ``equal_nan``."""
    x, y = aligned("isclose", x, y)
    if not x.dtype.is_inexact:
        x, y = convert(x, dt.f64), convert(y, dt.f64)
    near = logical_and(le(abs(sub(x, y)), add(mul(abs(y), rtol), atol)), isfinite(y))
    near = logical_or(near, eq(x, y))
    return logical_or(near, logical_and(isnan(x), isnan(y))) if equal_nan else near
