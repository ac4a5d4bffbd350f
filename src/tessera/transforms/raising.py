"""Formulas that people write by hand become the composites they are: softmax, norms, gelu, attention, cross entropy.

Raising runs before every other transformation, so that derivative rules and the scheduler see the composite.  Reductions and
products are then evaluated by the composite's definition, which may round differently from the formula as written; gelu and
silu, whose eager form is bit for bit that of their ops, carry the formula where their definition has other roundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import Copier, Function, Op, TensorType, Value, rewrite
from ..ops.formulas import canonical
from ..types import dtypes as dt
from ..types.dims import mod
from .canonicalize import canonicalize
from .cleanup import eliminate_dead_code, merge_common_subexpressions
from .expand import definition
from .matching import (
    close,
    either,
    factors,
    formula_of,
    is_literal,
    literal,
    lower_triangle,
    mean_of,
    row_value,
    same,
    unbroadcast,
)
from .rewriting import everywhere, producer

Rule = Callable[[Copier, Op, "list[Value]"], "Value | None"]
RULES: dict[str, list[Rule]] = {}
FLOATS = (dt.f16, dt.bf16, dt.f32, dt.f64)


def raises(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule that is tried at ops of these names: (copier, op, new operands) -> the composite's value, or None."""
    def enter(fn: Rule) -> Rule:
        for n in names:
            RULES.setdefault(n, []).append(fn)
        return fn
    return enter


def raise_composites(fn: Function) -> Function:
    """``fn`` with known formulas as composites."""
    tidy = merge_common_subexpressions(canonicalize(fn))
    return eliminate_dead_code(everywhere(tidy, lambda f: rewrite(f, _apply)))


def _apply(c: Copier, op: Op) -> list[Value] | None:
    rules = RULES.get(op.name)
    if rules is None or not op.results or op.results[0].type.dtype not in FLOATS:
        return None
    operands = c.operands(op)
    probe = Op(op.name, operands, [r.type for r in op.results], op.attrs, (), op.loc)
    for r in rules:
        made = r(c, probe, operands)
        if made is not None:
            return [made]
    return None


def _make(c: Copier, op: Op, name: str, operands: Sequence[Value], t: TensorType, **attrs: Any) -> Value:
    return c.builder.value(name, operands, t, attrs, (), op.loc)


# -- softmax -----------------------------------------------------------------------------------------------------------------
def _shifted(v: Value) -> tuple[Value, int] | None:
    """``x - max(x)`` along one axis: (x, axis)."""
    op = producer(v, "sub")
    if op is None:
        return None
    x, top = op.operands
    inner = producer(unbroadcast(top), "select")  # where(isfinite(top), top, 0)
    if inner is not None and producer(inner.operands[0], "isfinite") is not None and is_literal(inner.operands[2], 0.0):
        top = inner.operands[1]
    found = row_value(top, x)
    if found is None or found[0].name != "reduce_max" or not same(found[0].operands[0], x):
        return None
    return x, found[1]


def _normalised(e: Value, total: Value) -> tuple[Value, int] | None:
    """``exp(x - max)`` and its sum: (x, axis)."""
    exp = producer(e, "exp")
    if exp is None:
        return None
    found, shifted = row_value(total, e), _shifted(exp.operands[0])
    if found is None or shifted is None or found[0].name != "reduce_sum" or found[1] != shifted[1]:
        return None
    return shifted if same(found[0].operands[0], e) else None


@raises("div")
def _softmax(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    found = _normalised(xs[0], xs[1])
    return _make(c, op, "softmax", (found[0],), op.results[0].type, axis=found[1]) if found else None


@raises("mul")
def _softmax_by_reciprocal(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    for e, r in either(op):
        inner = unbroadcast(r).op
        total: Value | None = None
        if inner is not None and inner.name == "reciprocal":
            total = inner.operands[0]
        elif inner is not None and inner.name == "div" and is_literal(inner.operands[0], 1.0):
            total = inner.operands[1]
        found = _normalised(e, total) if total is not None else None
        if found:
            return _make(c, op, "softmax", (found[0],), op.results[0].type, axis=found[1])
    return None


@raises("sub")
def _log_softmax(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    shifted = _shifted(xs[0])
    log = producer(unbroadcast(xs[1]), "log")
    if shifted is None or log is None:
        return None
    found = row_value(log.operands[0], xs[0])
    exp = producer(found[0].operands[0], "exp") if found and found[0].name == "reduce_sum" else None
    if found is None or exp is None or found[1] != shifted[1] or not same(exp.operands[0], xs[0]):
        return None
    return _make(c, op, "log_softmax", (shifted[0],), op.results[0].type, axis=shifted[1])


# -- norms -------------------------------------------------------------------------------------------------------------------
def _inverse_root(c: Copier, op: Op) -> list[tuple[Value, Value]]:
    """Ways to read ``op`` as ``d / sqrt(v)``: (d, v)."""
    out = []
    if op.name == "div":
        root = producer(unbroadcast(op.operands[1]), "sqrt")
        if root is not None:
            out.append((op.operands[0], root.operands[0]))
    else:
        for d, r in either(op):
            root = producer(unbroadcast(r), "rsqrt")
            if root is not None:
                out.append((d, root.operands[0]))
    return out


def _plus_eps(v: Value) -> tuple[Value, float] | None:
    op = producer(unbroadcast(v), "add")
    if op is None:
        return None
    for a, e in either(op):
        eps = literal(e)
        if eps is not None and 0 <= eps < 0.1:
            return a, eps
    return None


def _square_of(v: Value) -> Value | None:
    scale, parts = factors(v)
    return parts[0] if scale == 1.0 and len(parts) == 2 and same(parts[0], parts[1]) else None


@raises("mul", "div")
def _norm(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    for d, v in _inverse_root(c, op):
        found = _plus_eps(v)
        if found is None or d.type.rank == 0:
            continue
        squares = mean_of(found[0], d)
        base = _square_of(squares) if squares is not None else None
        if base is None or not same(base, d):
            continue
        centred = producer(d, "sub")
        if centred is not None:
            x = centred.operands[0]
            source = mean_of(centred.operands[1], x)
            if source is not None and same(source, x):
                return _make(c, op, "layer_norm", (x,), op.results[0].type, eps=found[1])
        return _make(c, op, "rms_norm", (d,), op.results[0].type, eps=found[1])
    return None


@raises("mul", "add")
def _affine(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    """The weight and the bias of a norm."""
    for y, w in either(op):
        norm = y.op
        if norm is None or norm.name not in ("layer_norm", "rms_norm"):
            continue
        wanted = 1 if op.name == "mul" else 2
        if len(norm.operands) != wanted or (norm.name == "rms_norm" and wanted == 2):
            continue
        vector = _vector(w, y)
        if vector is not None:
            return _make(c, op, norm.name, (*norm.operands, vector), op.results[0].type, **norm.attrs)
    return None


def _vector(w: Value, y: Value) -> Value | None:
    """The vector over the last axis that ``w`` repeats along all others."""
    v = unbroadcast(w)
    if v is w and y.type.rank > 1:
        return None
    op = producer(v, "reshape")
    if op is not None and all(n == 1 for n in v.type.shape[:-1]):
        v = op.operands[0]
    return v if v.type.shape == y.type.shape[-1:] else None


# -- gelu and silu -------------------------------------------------------------------------------------------------------------
def _activation(c: Copier, op: Op, name: str, x: Value, **attrs: Any) -> Value | None:
    """The composite, with the formula of ``op`` over ``x`` where the definition would round in another order."""
    made = formula_of(op, x)
    if made is None or op.results[0].type != x.type:
        return None
    body = definition(name, (x.type,), attrs)
    result = body.returns[0].op
    meant = formula_of(result, body.args[0]) if result is not None else None
    if meant is None or canonical(meant) != canonical(made):
        attrs["formula"] = made
    return _make(c, op, name, (x,), op.results[0].type, **attrs)


@raises("mul")
def _gelu(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    scale, parts = 1.0, list[Value]()
    for v in xs:
        s, p = factors(v)
        scale, parts = scale * s, parts + p
    if len(parts) != 2 or not close(scale, 0.5):
        return None
    for x, gate in (parts, parts[::-1]):
        add = producer(gate, "add")
        if add is None:
            continue
        for curve, one in either(add):
            if is_literal(one, 1.0) and curve.op is not None and curve.op.name in ("erf", "tanh"):
                form = _gelu_form(curve.op, x)
                if form is not None:
                    return _activation(c, op, "gelu", x, approximate=form)
    return None


def _gelu_form(curve: Op, x: Value) -> str | None:
    scale, parts = factors(curve.operands[0])
    if curve.name == "erf":
        return "none" if len(parts) == 1 and same(parts[0], x) and close(scale, math.sqrt(0.5)) else None
    if not close(scale, math.sqrt(2 / math.pi)):
        return None
    if len(parts) == 1:
        return "tanh" if _cubic(parts[0], x, linear=x) else None
    if len(parts) == 2:  # x * (1 + 0.044715 * x * x)
        for p, rest in (parts, parts[::-1]):
            if same(p, x) and _cubic(rest, x, linear=None):
                return "tanh"
    return None


def _cubic(v: Value, x: Value, linear: Value | None) -> bool:
    """``x + 0.044715*x*x*x`` or, with ``linear`` None, ``1 + 0.044715*x*x``."""
    op = producer(v, "add")
    if op is None:
        return False
    for a, b in either(op):
        scale, parts = factors(b)
        first = same(a, x) if linear is not None else is_literal(a, 1.0)
        if first and close(scale, 0.044715) and len(parts) == (3 if linear is not None else 2) \
                and all(same(p, x) for p in parts):
            return True
    return False


@raises("mul", "div")
def _silu(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    if op.name == "mul":
        for x, gate in either(op):
            s = producer(gate, "sigmoid")
            if s is not None and same(s.operands[0], x):
                return _activation(c, op, "silu", x)
        return None
    add = producer(xs[1], "add")
    if add is None:
        return None
    for e, one in either(add):
        exp = producer(e, "exp")
        neg = producer(exp.operands[0], "neg") if exp is not None else None
        if neg is not None and is_literal(one, 1.0) and same(neg.operands[0], xs[0]):
            return _activation(c, op, "silu", xs[0])
    return None


# -- cross entropy -------------------------------------------------------------------------------------------------------------
@raises("neg")
def _cross_entropy(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    squeeze = producer(xs[0], "reshape")
    taken = producer(squeeze.operands[0] if squeeze is not None else xs[0], "take_along_axis")
    if taken is None or squeeze is None:
        return None
    logp, at = producer(taken.operands[0], "log_softmax"), producer(taken.operands[1], "reshape")
    last = taken.operands[0].type.rank - 1
    if logp is None or at is None or taken.attrs["axis"] != last or logp.attrs["axis"] != last:
        return None
    targets = at.operands[0]
    if targets.type.shape != op.results[0].type.shape or taken.operands[1].type.shape != (*targets.type.shape, 1):
        return None
    return _make(c, op, "cross_entropy", (logp.operands[0], targets), op.results[0].type)


# -- attention -----------------------------------------------------------------------------------------------------------------
@raises("dot_general")
def _attention(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    p, v = _unconverted(xs[0]), xs[1]
    soft = producer(p, "softmax")
    rank = op.results[0].type.rank
    if soft is None or rank < 2 or soft.attrs["axis"] != rank - 1 or not _is_matmul(op, rank, rank - 2):
        return None
    score = _Score(c, op).read(soft.operands[0])
    if score is None:
        return None
    q, k = score.query, score.key
    types = [q.type, k.type, v.type]
    lead = [t.shape[:-2] for t in types]
    if any(t.rank != rank for t in types) or q.type.dtype is not v.type.dtype or k.type.dtype is not v.type.dtype:
        return None
    if not all(isinstance(t.shape[-1], int) for t in types):
        return None  # the template keeps a head's row in registers: its extent is a number
    if op.results[0].type.dtype is not q.type.dtype or lead[1] != lead[2] or not _grouped(lead[0], lead[1]):
        return None
    masks = [score.mask] if score.mask is not None else []
    asked = {"schedule": op.attrs["schedule"]} if op.attrs.get("schedule") else {}
    return _make(c, op, "attention", (q, k, v, *masks), op.results[0].type, scale=score.scale, causal=score.causal, **asked)


def _grouped(q: tuple[Any, ...], k: tuple[Any, ...]) -> bool:
    return all(a == b or (i == len(q) - 1 and b != 0 and mod(a, b) == 0)
               for i, (a, b) in enumerate(zip(q, k, strict=True)))


def _unconverted(v: Value) -> Value:
    op = producer(v, "convert")
    return op.operands[0] if op is not None and op.operands[0].type.dtype.is_float else v


def _is_matmul(op: Op, rank: int, contract: int) -> bool:
    """``[.., m, k] x [.., k, n]`` (contract = rank - 2) or ``[.., m, k] x [.., n, k]`` (rank - 1), axes paired, no small sums."""
    a, lead = op.attrs, tuple(range(rank - 2))
    if a.get("accumulate") is not None and a["accumulate"].bits < 32:
        return False
    return tuple(a["lhs_contract"]) == (rank - 1,) and tuple(a["rhs_contract"]) == (contract,) \
        and tuple(a["lhs_batch"]) == lead and tuple(a["rhs_batch"]) == lead


class _Score:
    """Reads ``scale * q k^T [+ mask]`` from the outside in."""

    def __init__(self, c: Copier, op: Op):
        self.c, self.op = c, op
        self.scale = 1.0
        self.causal = False
        self.mask: Value | None = None

    def read(self, v: Value) -> _Score | None:
        self.shape = v.type.shape
        for _ in range(8):
            v = _unconverted(v)
            op = v.op
            if op is None:
                return None
            if op.name == "dot_general":
                return self if self._product(op) else None
            inner = self._mask(op) or self._scale(op)
            if inner is None:
                return None
            v = inner
        return None

    def _scale(self, op: Op) -> Value | None:
        if op.name == "mul":
            for s, k in either(op):
                x = literal(k)
                if x is not None:
                    self.scale *= x
                    return s
        if op.name == "div":
            x = literal(op.operands[1])
            if x:
                self.scale /= x
                return op.operands[0]
        return None

    def _mask(self, op: Op) -> Value | None:
        """Take a mask off the score, where nothing has been scaled outside it."""
        if self.scale != 1.0:
            return None
        if op.name == "select":
            keep, s, other = op.operands
            value = literal(other)
            if value is not None and value <= -1e4:
                return s if self._add_bool(keep, value) else None
        if op.name == "add" and self.mask is None:
            for s, m in either(op):
                if literal(m) is None and _leads_to_product(s) and not _leads_to_product(m):
                    small = self._small(m)
                    if small is None or small.type.dtype not in (dt.f32, self.op.operands[1].type.dtype):
                        return None
                    self.mask = small
                    return s
        return None

    def _add_bool(self, keep: Value, value: float) -> bool:
        t, q = self.shape[-1], self.shape[-2]
        offset = lower_triangle(keep)
        if offset is not None and offset == t - q and not self.causal and value == -math.inf:
            self.causal = True
            return True
        if self.mask is not None:
            return False
        small = self._small(keep)
        if small is None:
            return False
        if value != -math.inf:  # a finite penalty is added: rows without any key keep their meaning
            kind = TensorType(dt.f32, small.type.shape)
            filled = [self.c.builder.value("full", (), kind, {"shape": kind.shape, "value": x, "dtype": dt.f32})
                      for x in (0.0, value)]
            small = self.c.builder.value("select", (small, *filled), kind)
        self.mask = small
        return True

    def _small(self, m: Value) -> Value | None:
        """The mask before it was stretched, with the score's rank."""
        v = unbroadcast(m)
        missing = len(self.shape) - v.type.rank
        if missing < 0:
            return None
        if missing:
            shape = (1,) * missing + tuple(v.type.shape)
            v = self.c.builder.value("reshape", (v,), v.type.with_shape(shape), {"shape": shape})
        return v

    def _product(self, op: Op) -> bool:
        rank = op.results[0].type.rank
        q, k = op.operands
        if _is_matmul(op, rank, rank - 1):
            self.query, self.key = q, k
        elif _is_matmul(op, rank, rank - 2):
            self.query, self.key = q, self._transposed(k)
        else:
            return False
        scaled = producer(self.query, "mul") or producer(self.query, "div")
        if scaled is not None:
            before, inner = self.scale, self._scale(scaled)
            if inner is not None and inner.type == self.query.type:
                self.query = inner
            else:
                self.scale = before
        return True

    def _transposed(self, k: Value) -> Value:
        rank = k.type.rank
        perm = (*range(rank - 2), rank - 1, rank - 2)
        inner = producer(k, "transpose")
        if inner is not None and tuple(inner.attrs["perm"]) == perm:
            return inner.operands[0]
        shape = tuple(k.type.shape[p] for p in perm)
        return self.c.builder.value("transpose", (k,), k.type.with_shape(shape), {"perm": perm})


def _leads_to_product(v: Value) -> bool:
    for _ in range(8):
        op = v.op
        if op is None:
            return False
        if op.name == "dot_general":
            return True
        if op.name not in ("mul", "div", "convert", "add", "select"):
            return False
        v = op.operands[1] if op.name == "select" else op.operands[0] if literal(op.operands[0]) is None else op.operands[1]
    return False
