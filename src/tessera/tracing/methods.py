"""Tensor's methods: one table from method names to functions of the op namespace.

Binary operators have a short path for eager use: the function, with its promotion and broadcasting, is compiled once as
a small program for the operands' dtypes and pattern of sizes, and a call is one look-up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, TesseraError, UnsupportedError, suggest
from ..errors.boundary import describe
from ..ir.core import TensorType, value_key
from ..types import dtypes as dt
from ..types.dims import Dim
from ..types.promotion import promote_weak
from . import eager
from .dense import FEW_BYTES, flattened, lying
from .placed import DeviceArray
from .recorder import STATE, Trace, tracing
from .tensor import _OF_NUMPY, Tensor, make, ndarray

NAMESPACE: Any = None
"""The module with the user's functions (``tessera.ops``), set when the package is assembled."""


def function(name: str) -> Callable[..., Any]:
    """A function of the op namespace.

    Raises:
        UnsupportedError: there is none of that name.
    """
    f = getattr(NAMESPACE, name, None)
    if f is None:
        known = dir(NAMESPACE) if NAMESPACE is not None else []
        raise UnsupportedError(f"there is no function {name!r}{suggest(name, known)}")
    return f  # type: ignore[no-any-return]


# -- tables --------------------------------------------------------------------------------------------------------------
# operator: (function, reflected)
BINARY = {
    "__add__": ("add", False), "__radd__": ("add", True), "__sub__": ("sub", False), "__rsub__": ("sub", True),
    "__mul__": ("mul", False), "__rmul__": ("mul", True), "__truediv__": ("div", False), "__rtruediv__": ("div", True),
    "__floordiv__": ("floor_div", False), "__rfloordiv__": ("floor_div", True), "__mod__": ("mod", False),
    "__rmod__": ("mod", True), "__pow__": ("pow", False), "__rpow__": ("pow", True), "__matmul__": ("matmul", False),
    "__rmatmul__": ("matmul", True), "__and__": ("bitwise_and", False), "__rand__": ("bitwise_and", True),
    "__or__": ("bitwise_or", False), "__ror__": ("bitwise_or", True), "__xor__": ("bitwise_xor", False),
    "__rxor__": ("bitwise_xor", True), "__lshift__": ("shift_left", False), "__rlshift__": ("shift_left", True),
    "__rshift__": ("shift_right", False), "__rrshift__": ("shift_right", True), "__eq__": ("eq", False),
    "__ne__": ("ne", False), "__lt__": ("lt", False), "__le__": ("le", False), "__gt__": ("gt", False),
    "__ge__": ("ge", False),
}
UNARY = {"__neg__": "neg", "__abs__": "abs", "__invert__": "bitwise_not", "__round__": "round"}
METHODS = {name: name for line in (
    "reshape flatten ravel permute transpose swapaxes moveaxis squeeze unsqueeze expand_dims expand broadcast_to flip roll",
    "split chunk repeat tile tril triu sum mean max min prod any all std var argmax argmin cumsum cumprod norm logsumexp",
    "count_nonzero softmax log_softmax exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan tanh sinh cosh asin acos",
    "atan erf sigmoid relu gelu silu abs neg sign floor ceil round trunc square reciprocal clip minimum maximum pow",
    "add sub mul div matmul where isnan isinf isfinite sort argsort topk take take_along_axis gather scatter nonzero unique",
    "dot logical_not logical_and logical_or logical_xor allclose isclose masked_fill diagonal trace conj angle bitcast layer_norm",
    "argwhere median index_put",
) for name in line.split()}
METHODS |= {"to": "cast", "astype": "cast", "type_as": "cast", "view": "reshape", "clamp": "clip", "amax": "max", "amin": "min",
            "mm": "matmul", "multiply": "mul", "divide": "div", "subtract": "sub", "concat": "concat"}
PROPERTIES = {"T": "transpose", "mT": "matrix_transpose", "real": "real", "imag": "imag"}

# Functions whose program does not depend on the value of a Python number among their operands.
FAST = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "bitwise_and",
                  "bitwise_or", "bitwise_xor", "matmul"})
# Functions of one tensor and plain values, which run eagerly as one program however many ops they are made of.
WHOLE = frozenset(name for line in (
    "relu relu6 leaky_relu elu silu swish softplus log_sigmoid hardtanh softsign gelu softmax log_softmax mean var std norm",
    "logsumexp sum prod max min amax amin any all argmax argmin cumsum cumprod exp exp2 expm1 log log2 log10 log1p sqrt rsqrt",
    "sin cos tan tanh sinh cosh asin acos atan erf sigmoid abs neg sign floor ceil round square reciprocal clip pow isnan",
    "isinf isfinite logical_not bitwise_not cast tril triu count_nonzero",
) for name in line.split())


# -- operators -----------------------------------------------------------------------------------------------------------
_ACCEPTED = (Tensor, bool, int, float, complex, np.ndarray, np.generic, Dim, list, tuple)


def binary(name: str, reflected: bool = False) -> Callable[[Any, Any], Any]:
    """The operator method for a function of two tensors."""
    table: dict[Any, Callable[[Any, Any], Any]] = {}
    _tables.append(table)
    fast = name in FAST

    def operator(self: Any, other: Any) -> Any:
        if fast and STATE.trace is None and STATE.policy is None:
            a = self._p
            kind = type(other)
            try:
                if kind is Tensor:
                    b = other._p
                    return table[a.dtype, b.dtype, a.shape, b.shape](a, b)
                return table[a.dtype, a.shape, kind](a, other)
            except (KeyError, AttributeError, TypeError, OverflowError):
                pass
            prepared = _prepare(name, reflected, self, other, table)
            if prepared is not None:
                return prepared
        if not isinstance(other, _ACCEPTED) and not hasattr(other, "__array__"):
            return _step_back(name, reflected, self, other)
        f = function(name)
        return f(other, self) if reflected else f(self, other)

    operator.__doc__ = f"``{name}``, elementwise with promotion and broadcasting."
    return operator


def _step_back(name: str, reflected: bool, x: Any, other: Any) -> Any:
    """NotImplemented, where ``other`` may know what to do with a tensor.

    Raises:
        ArgumentError: it does not.
    """
    mirror = _MIRRORS[name]
    knows = type(other).__module__ != "builtins" and getattr(type(other), mirror, None) is not getattr(object, mirror, None)
    if reflected or name in ("eq", "ne") or knows:
        return NotImplemented
    raise ArgumentError(f"{name}() takes tensors, arrays and numbers, not {describe(other)}", expected=str(x.type),
                        received=describe(other))


_MIRRORS = {name: method for method, (name, reflected) in BINARY.items() if reflected} | {
    "eq": "__eq__", "ne": "__ne__", "lt": "__gt__", "le": "__ge__", "gt": "__lt__", "ge": "__le__", "maximum": "", "minimum": ""}


def _prepare(name: str, reflected: bool, a: Any, b: Any, table: dict[Any, Any]) -> Any:
    """Enter a program for these operands into ``table`` and run it; None where the general path must decide."""
    x = a._p
    if isinstance(x, DeviceArray):
        return _on_device(name, reflected, x, b, table)
    if type(x) is not ndarray or len(table) > eager.LIMIT:
        return None
    xt = TensorType(_OF_NUMPY[x.dtype], x.shape)
    key: Any
    if type(b) is Tensor:
        y = b._p
        if type(y) is not ndarray:
            return None
        yt, key = TensorType(_OF_NUMPY[y.dtype], y.shape), (x.dtype, y.dtype, x.shape, y.shape)
    elif type(b) in (bool, int, float):
        kind = promote_weak(xt.dtype, type(b)) if xt.dtype is not dt.bool_ or type(b) is not bool else dt.bool_
        if kind.is_integer and not kind.iinfo.min <= b <= kind.iinfo.max:
            return None
        yt, key = TensorType(kind, ()), (x.dtype, x.shape, type(b))
    else:
        return None
    run = _paired(name, reflected, xt, yt, type(b) is not Tensor)
    if run is None:
        return None
    table[key] = run
    return run(x, b._p if type(b) is Tensor else b)


def _on_device(name: str, reflected: bool, x: DeviceArray, b: Any, table: dict[Any, Any]) -> Any:
    """The same for a tensor on a device with a number; other operands take the general path."""
    xt = TensorType(_OF_NUMPY[x.dtype], x.shape)
    if type(b) not in (int, float) or len(table) > eager.LIMIT or xt.dtype is dt.bool_:
        return None
    kind = promote_weak(xt.dtype, type(b))
    if kind.is_integer and not kind.iinfo.min <= b <= kind.iinfo.max:
        return None
    general = eager.symbolic([xt])[0]
    key = (name, reflected, general, kind, x.dtype)
    exe = _programs.get(key)
    if exe is None:
        trace = Trace(f"eager_{name}")
        x_, y_ = trace.parameter(general), trace.parameter(TensorType(kind, ()))
        with tracing(trace):
            f: Any = function(name)
            out = f(y_, x_) if reflected else f(x_, y_)
        exe = _programs[key] = eager.compile_graph(trace.finish([out]), x.dtype.device)
    np_dtype, array = kind.np, np.array
    run: Any = lambda a, n: make(exe([a, array(n, np_dtype)])[0])
    table[x.dtype, x.shape, type(b)] = run
    return run(x, b)


def _paired(name: str, reflected: bool, xt: TensorType, yt: TensorType, number: bool) -> Callable[[Any, Any], Any] | None:
    flat = name != "matmul" and xt.rank != 1 and (number or xt.shape == yt.shape) and 0 not in xt.shape
    wanted = [TensorType(xt.dtype, (xt.size,)), yt if number else TensorType(yt.dtype, (yt.size,))] if flat else [xt, yt]
    exe = program_of(name, reflected, wanted)
    if exe is None:
        return None
    shape, np_dtype, array = xt.shape, yt.dtype.np, np.array
    few = max(int(t.size) * t.dtype.itemsize for t in (xt, yt)) < FEW_BYTES
    line = _view_as_line if few else flattened
    if number and flat:
        return lambda a, b: make(exe([line(a), array(b, np_dtype)])[0].reshape(shape))
    if number:
        return lambda a, b: make(exe([a, array(b, np_dtype)])[0])
    if flat:
        return lambda a, b: make(exe([line(a), line(b)])[0].reshape(shape))
    if few:
        return lambda a, b: make(exe([a, b])[0])

    def run(a: Any, b: Any) -> Tensor:
        if a.flags.c_contiguous and b.flags.c_contiguous:
            return make(exe([a, b])[0])
        (a, p), (b, q) = (lying(x) or (x, None) for x in (a, b))
        other = program_of(name, reflected, [TensorType(_OF_NUMPY[x.dtype], x.shape) for x in (a, b)], (p, q))
        return make(other([a, b])[0])

    return run


def _view_as_line(a: Any) -> Any:
    return a.reshape(-1)


_programs: dict[Any, Any] = {}
_tables: list[dict[Any, Any]] = []


def clear() -> None:
    """Forget every prepared operator."""
    _programs.clear()
    for table in _tables:
        table.clear()


def program_of(name: str, reflected: bool, types: list[TensorType], perms: Sequence[tuple[int, ...] | None] = (None, None)) -> Any:
    """The compiled program of a function of two tensors, with symbolic sizes; None where its result is no tensor.

    ``perms``: how the axes of the parameters are permuted first, where a tensor's axes lie otherwise in memory than in its shape.
    """
    general = eager.symbolic(types)
    key = (name, reflected, *general, *perms)
    if key in _programs:
        return _programs[key]
    trace = Trace(f"eager_{name}")
    params = [trace.parameter(t) for t in general]
    try:
        with tracing(trace):
            f = function(name)
            params = [t if p is None else function("transpose")(t, p) for t, p in zip(params, perms, strict=True)]
            out = f(params[1], params[0]) if reflected else f(*params)
    except TesseraError:  # the general path says it with the user's own sizes
        return None
    if not isinstance(out, Tensor):
        return None
    exe = _programs[key] = eager.compile_graph(trace.finish([out]))
    return exe


# -- attaching -----------------------------------------------------------------------------------------------------------
def _late(name: str) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        return function(name)(*args, **kwargs)
    return method


def attach(namespace: Any) -> None:
    """Give ``Tensor`` its methods; ``namespace`` is the module that holds the functions."""
    global NAMESPACE
    NAMESPACE = namespace
    for method, (name, reflected) in BINARY.items():
        setattr(Tensor, method, binary(name, reflected))
    for method, name in (UNARY | METHODS).items():
        if method not in Tensor.__dict__:
            setattr(Tensor, method, public(name) or _late(name))
    for prop, name in PROPERTIES.items():
        setattr(Tensor, prop, property(_late(name)))
    setattr(Tensor, "__hash__", object.__hash__)  # noqa: B010  (defining == has removed it)
    setattr(Tensor, "__pos__", lambda self: self)  # noqa: B010


def quick(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of two tensors with the operators' short path for eager use."""
    operator = binary(f.__name__)

    def function_of_two(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 2 and not kwargs and type(args[0]) is Tensor:
            out = operator(*args)
            if out is not NotImplemented:
                return out
        return f(*args, **kwargs)

    return functools.update_wrapper(function_of_two, f)


# -- functions of one tensor ---------------------------------------------------------------------------------------------
_PLAIN = (int, float, bool, str, type(None), dt.DType)


def whole(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one tensor and plain values that runs eagerly as one program."""
    table: dict[Any, Any] = {}
    _tables.append(table)

    def function_of_one(*args: Any, **kwargs: Any) -> Any:
        if STATE.trace is None and STATE.policy is None and args and type(args[0]) is Tensor:
            p = args[0]._p
            try:
                key = (p.dtype, p.shape) if len(args) == 1 and not kwargs else _full_key(p, args, kwargs)
                run = table.get(key)
            except (TypeError, AttributeError):  # something that cannot be a key, or a donated tensor
                return f(*args, **kwargs)
            if run is None:
                run = table[key] = _whole_program(f, p, args, kwargs) or f
                if len(table) > eager.LIMIT:
                    table.clear()
            if run is not f:
                return run(p)
        return f(*args, **kwargs)

    return functools.update_wrapper(function_of_one, f)


def _full_key(p: Any, args: Any, kwargs: Any) -> Any:
    return (p.dtype, p.shape, *[value_key(v) for v in args[1:]], *[(k, value_key(v)) for k, v in kwargs.items()])


def _plain(v: Any) -> bool:
    return isinstance(v, _PLAIN) or (isinstance(v, tuple) and all(isinstance(x, int) for x in v))


def _whole_program(f: Callable[..., Any], p: Any, args: Any, kwargs: Any) -> Callable[[Any], Tensor] | None:
    """``f`` as a program of its first argument; None where it is not one."""
    if type(p) is not ndarray or not all(map(_plain, (*args[1:], *kwargs.values()))):
        return None
    exact = TensorType(_OF_NUMPY[p.dtype], p.shape)
    for t in dict.fromkeys((*eager.symbolic([exact]), exact)):
        key = (f, t, _full_key(p, args, kwargs)[2:])
        exe = _programs.get(key)
        if exe is None:
            trace = Trace(f"eager_{f.__name__}")
            x = trace.parameter(t)
            try:
                with tracing(trace):
                    out = f(x, *args[1:], **kwargs)
            except (TesseraError, TypeError):  # a size is needed as a number; or the general path says what is wrong
                continue
            if not isinstance(out, Tensor) or trace.captured:  # (stochastic rounding takes the next key of the stream)
                return None
            if trace.constraints:  # true of these sizes, and not of all
                continue
            if out._p is x._p:
                return lambda a: make(a)
            exe = _programs[key] = eager.compile_graph(trace.finish([out]))
        return lambda a, exe=exe: make(exe([a])[0])  # type: ignore[misc]
    return None


def public(name: str) -> Callable[..., Any] | None:
    """The function that users call under ``name``, with its short path for eager use; None when there is none."""
    if name not in _public:
        f = getattr(NAMESPACE, name, None)
        if f is not None and name in FAST:
            f = quick(f)
        elif f is not None and name in WHOLE:
            f = whole(f)
        _public[name] = f
    return _public[name]


_public: dict[str, Callable[..., Any] | None] = {}
