"""The public namespace, and the one place where the rooms are put together.

Importing this module fills the registries through which lower rooms are reached from higher ones: Tensor's methods (from
the op table), the effects of ops, and the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
from types import FunctionType
from typing import Any, Callable, Dict, List, Optional, Tuple  # noqa: UP035  (re-exported under the names users write)

import numpy as np

from . import errors, ops
from .errors import (
    CheckpointError,
    CompileError,
    ConstraintError,
    DeviceError,
    DTypeError,
    EffectError,
    IndexOutOfRangeError,
    KernelError,
    NumericalError,
    ShapeError,
    TesseraError,
    TracingError,
    UnsupportedError,
)
from .errors.boundary import guarded
from .ops.table import OPS
from .tracing import creation, eager, indexing, methods, numpy_calls, policies, recorder
from .tracing import tensor as tensor_module
from .tracing.control import cond, fori_loop, scan, while_loop
from .tracing.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    meshgrid,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from .tracing.function import eval_shape, function, jit, require
from .tracing.indexing import masked_select
from .tracing.parameters import linear
from .tracing.tensor import Tensor
from .types.constraints import sym
from .types.dtypes import (
    ALIASES,
    DType,
    bf16,
    bool_,
    complex64,
    complex128,
    f16,
    f32,
    f64,
    fp4_e2m1,
    fp6_e2m3,
    fp6_e3m2,
    fp8_e4m3,
    fp8_e5m2,
    int4,
    int8,
    int16,
    int32,
    int64,
    tf32,
    uint4,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .types.policy import NumericalPolicy, Policy, RoundingMode, accum

# Submodules that are loaded when they are first named; several are callable.
LAZY_MODULES = {
    "nn": "nn", "optim": "optim",
    "dims": "dims", "models": "models", "importers": "importers", "random": "random", "memory": "memory", "cache": "cache",
    "effects": "effects", "device": "device", "numerics": "numerics", "stable": "stable", "summation": "summation", "rounding": "rounding",
    "deterministic": "deterministic", "debug": "debug", "amp": "amp",
    "quantization": "quantization",
    "functional": "functional", "kernels": "kernels",
    "runtime": "runtime", "machine": "machine",
    "transforms": "transforms",
    "compiler": "compiler", "codegen": "codegen", "checkpoint": "checkpoint", "remat": "checkpoint", "graph": "graph",
    "types": "types", "tracing": "tracing", "ir": "ir", "scheduling": "scheduling", "tiling": "tiling", "cli": "cli",
    "targets": "targets", "schedule": "schedule", "autotune": "autotune", "ml": "ml", "textual": "textual", "hf": "hf",
}
# Names that live in rooms which need not be loaded for everything: name -> (module, attribute).
LAZY_NAMES = {
    "CodeGenerator": ("codegen", "CodeGenerator"), "Target": ("codegen", "Target"), "Binary": ("codegen", "Binary"),
    "TileIR": ("codegen", "TileIR"), "GraphIR": ("compiler", "GraphIR"),
    "current_device": ("device", "current_device"), "get_devices": ("device", "get_devices"),
    "backend": ("device", "backend"), "Device": ("device", "Device"),
    "specialize_for": ("device", "specialize_for"), "prefetch": ("memory", "prefetch"), "custom": ("tracing.function", "custom"),
    "log": ("messages", "log"), "explain": ("reports", "explain"),
    "randn": ("random", "randn"), "rand": ("random", "rand"), "randint": ("random", "randint"),
    "uniform": ("random", "uniform"), "normal": ("random", "normal"), "bernoulli": ("random", "bernoulli"),
    "permutation": ("random", "permutation"), "dropout": ("random", "dropout"), "manual_seed": ("random", "seed"),
    "maybe": ("functional", "maybe"), "memoize": ("functional", "memoize"), "Maybe": ("functional", "Maybe"),
    "Just": ("functional", "Just"), "Nothing": ("functional", "Nothing"), "pure": ("effects", "pure"),
    "Cache": ("cache", "Cache"), "KVCache": ("cache", "KVCache"), "RingBuffer": ("cache", "RingBuffer"),
    "PageTable": ("cache", "PageTable"), "EvictionPolicy": ("cache", "EvictionPolicy"), "PageFault": ("cache", "PageFault"),
    "persistent_cache": ("persistent", "persistent_cache"),
    "Stateful": ("tracing.state", "Stateful"), "stateful": ("tracing.state", "stateful"), "with_state": ("tracing.state", "with_state"),
    "assign": ("tracing.state", "assign"),
    "compile": ("tracing.function", "jit"), "precision": ("numerics", "precision"), "TrainingPolicy": ("numerics", "TrainingPolicy"),
    "InferencePolicy": ("numerics", "InferencePolicy"), "kahan_sum": ("summation", "kahan_sum"),
    "verify_determinism": ("deterministic", "verify_determinism"),
    **{n: ("amp", n) for n in ("mixed_precision", "autocast", "grad_scale", "unscale_grads", "GradScaler", "PrecisionPolicy",
                               "adaptive_precision")},
    "quantization_aware": ("quantization", "quantization_aware"), "quantize": ("quantization", "quantize"),
    "numerically_stable": ("stable", "numerically_stable"),
    "kernel": ("tiling", "kernel"), "tile": ("tiling", "tile_namespace"), "Tile": ("tiling", "Tile"), "Tile3D": ("tiling", "Tile3D"),
    "set_num_threads": ("runtime", "set_num_threads"), "get_num_threads": ("runtime", "get_num_threads"),
    "grad": ("transforms.derivatives", "grad"), "value_and_grad": ("transforms.derivatives", "value_and_grad"),
    "jvp": ("transforms.derivatives", "jvp"), "vjp": ("transforms.pullback", "vjp"),
    "custom_vjp": ("transforms.custom", "custom_vjp"), "custom_jvp": ("transforms.custom", "custom_jvp"),
    "straight_through": ("transforms.custom", "straight_through"),
    "jacfwd": ("transforms.jacobians", "jacfwd"), "jacrev": ("transforms.jacobians", "jacrev"),
    "hessian": ("transforms.jacobians", "hessian"), "linearize": ("transforms.jacobians", "linearize"),
    "per_example_grad": ("transforms.jacobians", "per_example_grad"), "gradient_penalty": ("transforms.jacobians", "gradient_penalty"),
    "implicit_diff": ("transforms.implicit", "implicit_diff"), "diff_through_opt": ("transforms.implicit", "diff_through_opt"),
    "adjoint": ("ops.linalg", "adjoint"), "optimize": ("transforms.implicit", "minimise"),
    "unchecked": ("runtime", "unchecked"), "vmap": ("transforms.vmap", "vmap"),
    "Schedule": ("scheduling.decisions", "Schedule"), "Kernel": ("tiling", "Kernel"), "Autotuner": ("autotune", "Autotuner"),
    "PerformanceModel": ("autotune", "PerformanceModel"), "time": ("autotune.measure", "time"),
    "fold": ("transforms.folding", "fold"),
    "flash_attention_v1": ("nn", "flash_attention_v1"), "flash_attention_v2": ("nn", "flash_attention_v2"),
}
# Spellings of op functions beside their own.
SPELLINGS = {
    "flash_attention": "attention", "mse": "mse_loss",
    "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub", "negative": "neg", "absolute": "abs",
    "power": "pow", "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt",
    "greater_equal": "ge", "mm": "matmul", "bmm": "matmul", "clamp": "clip", "remainder": "mod", "floor_divide": "floor_div",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "movedim": "moveaxis",
    "conv_transpose1d": "conv_transpose", "conv_transpose2d": "conv_transpose", "conv_transpose3d": "conv_transpose",
}
dtype = DType
op = ops


_EXACT = frozenset({  # pointwise ops of which the result is an operand, or part of one: there is nothing to round
    "select", "convert", "bitcast", "neg", "abs", "sign", "minimum", "maximum", "copysign", "floor", "ceil", "round", "trunc",
    "real", "imag", "complex", "nextafter", "reduce_precision", "flush_subnormals"})


def _kinds_of_arithmetic() -> dict[str, str]:
    """What a numerical policy means for an op: ``tracing/policies.py``."""
    kinds = {"dot_general": "product", "conv": "product"}
    kinds |= dict.fromkeys(("reduce_sum", "reduce_prod", "cumsum", "cumprod"), "sum")
    kinds |= dict.fromkeys(("reduce_max", "reduce_min", "cummax", "cummin"), "choice")
    for name, rule in OPS.items():
        computes = rule.pointwise or rule.family == "composite"
        if computes and name not in _EXACT and any(d.is_float for d in rule.dtypes) and name not in (
                "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "searchsorted"):
            kinds[name] = "pointwise"
    return kinds


def _assemble() -> None:
    methods.attach(ops)
    function_room: Any = importlib.import_module("tessera.tracing.function")
    function_room.GRADIENT = lambda fn: find("grad", {})(fn)
    function_room.SETTLE = lambda *given: importlib.import_module("tessera.memory").settle_arguments(*given)
    ops.FIELDS.update({n: (lambda n=n: getattr(importlib.import_module("tessera.transforms.fields"), n))  # type: ignore[misc]
                       for n in ("Field", "domain", "field", "grad", "laplacian", "mlp", "reduce_sum")})
    setattr(tensor_module.Tensor, "__array_ufunc__", numpy_calls.array_ufunc)  # noqa: B010
    indexing.install()
    recorder.EFFECTS.update({name: d.effects for name, d in OPS.items() if d.effects})
    recorder.REQUIRES.update({name: d.facts["requires"] for name, d in OPS.items() if "requires" in d.facts})
    eager.HEADS.update(name for name, d in OPS.items() if d.facts.get("heads"))
    policies.COMPENSATED = importlib.import_module("tessera.ops.summation").over_axes
    policies.NONDETERMINISTIC.update({n: d.facts["nondeterministic"] for n, d in OPS.items() if "nondeterministic" in d.facts})
    policies.KINDS.update(_kinds_of_arithmetic())
    runtime = importlib.import_module("tessera.runtime")
    allocator = runtime.ALLOCATOR
    runtime.install()

    def empty_array(shape: tuple[int, ...], dtype: Any) -> Any:
        return allocator.empty(shape, dtype, math.prod(shape) * dtype.itemsize)

    def is_block(base: Any) -> bool:
        return isinstance(base, ctypes.Array) and getattr(type(base), "owns_its_memory", False)

    def expand_tile(fn: Any) -> Any:
        return importlib.import_module("tessera.tiling.vmath").expand(fn)

    def random_words(shape: Any, key: Any) -> Any:
        return importlib.import_module("tessera.random").words(shape, key=key)

    def run_tile(fn: Any, buffers: list[Any]) -> None:
        importlib.import_module("tessera.ir.interpret_tile").interpret(fn, buffers)

    tile_level: Any = importlib.import_module("tessera.ir")
    graph_level: Any = importlib.import_module("tessera.ir.interpret_graph")
    tile_level.EXPAND_TILE = expand_tile
    graph_level.KERNEL = run_tile
    recorder.RANDOM_WORDS = random_words
    creation.EMPTY = empty_array
    cast: Any = Tensor.to

    def to(x: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs or isinstance(args[0] if args else None, str | int | np.integer) or (
                args and type(args[0]).__module__ == "torch"):
            return importlib.import_module("tessera.device").moved(cast, x, *args, **kwargs)
        return cast(x, *args, **kwargs)

    setattr(Tensor, "to", functools.update_wrapper(to, cast))  # noqa: B010
    tensor_module.DEVICE_OF = lambda x: importlib.import_module("tessera.device").device_of(x)
    indexing.is_block = is_block


def _function_of(name: str) -> Any:
    return methods.public(SPELLINGS.get(name, name))


def find(name: str, into: dict[str, Any]) -> Any:
    """A public name; kept in ``into`` (the package's namespace) for next time.

    Raises:
        AttributeError: there is none; similar names are suggested.
    """
    if name == "__all__":
        return star_names()
    value = globals().get(name) if name in PUBLIC else None
    if value is None:
        value = ALIASES.get(name) if name != "float" else None
    if value is None and name in LAZY_MODULES:
        value = importlib.import_module(f"tessera.{LAZY_MODULES[name]}")
    if value is None and name in LAZY_NAMES:
        module, attribute = LAZY_NAMES[name]
        value = getattr(importlib.import_module(f"tessera.{module}"), attribute, None)
    if value is None:
        value = _function_of(name)
    if value is None:
        value = getattr(errors, name, None)
    if value is None:
        known = [n for n in public_names() if n != name]
        raise AttributeError(f"module 'tessera' has no attribute {name!r}{errors.suggest(name, known)}")
    if type(value) is FunctionType and not value.__module__.startswith("tessera.ops"):  # those guard themselves
        value = guarded(value)
        if value.__module__ == "tessera.tracing.creation":
            value = importlib.import_module("tessera.device").placing(value)
    into[name] = value
    return value


def public_names() -> list[str]:
    """Every public name."""
    own = [n for n in dir(ops) if not n.startswith("_") and callable(getattr(ops, n))]
    return sorted({*PUBLIC, *(ALIASES.keys() - {"float"}), *LAZY_MODULES, *LAZY_NAMES, *own, *SPELLINGS})


_BUILTIN = frozenset({"abs", "all", "any", "max", "min", "round", "pow", "float", "bool", "range", "Callable"})


def star_names() -> list[str]:
    """What ``from tessera import *`` brings: everything that hides no Python builtin (but ``sum``)."""
    available = [n for n in public_names() if n not in _BUILTIN and n not in LAZY_MODULES]
    return [*available, "device", "effects", "memory", "nn", "numerics", "random"]


__all__ = [
    "Callable",
    "CheckpointError",
    "CompileError",
    "ConstraintError",
    "DType",
    "DTypeError",
    "DeviceError",
    "Dict",
    "EffectError",
    "IndexOutOfRangeError",
    "KernelError",
    "List",
    "NumericalError",
    "NumericalPolicy",
    "Optional",
    "Policy",
    "RoundingMode",
    "ShapeError",
    "TesseraError",
    "TracingError",
    "Tuple",
    "UnsupportedError",
    "accum",
    "arange",
    "asarray",
    "bf16",
    "bool_",
    "complex64",
    "complex128",
    "cond",
    "dtype",
    "empty",
    "empty_like",
    "errors",
    "eval_shape",
    "eye",
    "f16",
    "f32",
    "f64",
    "fori_loop",
    "fp4_e2m1",
    "fp6_e2m3",
    "fp6_e3m2",
    "fp8_e4m3",
    "fp8_e5m2",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "function",
    "int4",
    "int8",
    "int16",
    "int32",
    "int64",
    "jit",
    "linear",
    "linspace",
    "masked_select",
    "meshgrid",
    "ones",
    "ones_like",
    "op",
    "ops",
    "require",
    "scan",
    "sym",
    "tensor",
    "tf32",
    "uint4",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "while_loop",
    "zeros",
    "zeros_like"
]

# ``Tensor`` is declared in ``__init__.py`` for static type checkers.
PUBLIC = frozenset([*__all__, "Tensor"])

_assemble()
