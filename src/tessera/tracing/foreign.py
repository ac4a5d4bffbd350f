"""What people coming from PyTorch and NumPy write on a tensor, and what they find here instead."""

from __future__ import annotations

from ..errors import suggest
from .methods import NAMESPACE
from .tensor import Tensor

INSTEAD = {
    "backward": "derivatives are of functions: ts.grad(loss_fn)(params)",
    "grad": "derivatives are of functions: ts.grad(loss_fn)(params)",
    "requires_grad": "ts.grad chooses what to differentiate by: ts.grad(loss_fn, argnums=0)",
    "requires_grad_": "ts.grad chooses what to differentiate by: ts.grad(loss_fn, argnums=0)",
    "retain_grad": "derivatives by an intermediate value: ts.vjp, or ts.grad(loss, x) inside a traced function",
    "cuda": 'x.to("gpu:0")', "copy": "x.clone()", "bool": "x.to(ts.bool)", "int": "x.to(ts.int32)", "long": "x.to(ts.int64)",
    "float": "x.to(ts.f32)", "double": "x.to(ts.f64)", "half": "x.to(ts.f16)", "bfloat16": "x.to(ts.bf16)",
    "data": "tensors are values: x, or x.numpy() for the memory", "data_ptr": "x.__array_interface__['data'] of x.numpy()",
    "stride": "x.numpy().strides (bytes)", "strides": "x.numpy().strides (bytes)", "tobytes": "x.numpy().tobytes()",
    "is_floating_point": "x.dtype.is_float", "is_complex": "x.dtype.is_complex", "element_size": "x.itemsize", "t": "x.T",
    "view_as": "x.reshape(other.shape)", "reshape_as": "x.reshape(other.shape)", "expand_as": "ts.broadcast_to(x, other.shape)",
    "new_zeros": "ts.zeros(shape, dtype=x.dtype)", "new_ones": "ts.ones(shape, dtype=x.dtype)", "fill": "x[...] = value",
    "index_select": "x[:, index]", "narrow": "x[start:start + length]", "select": "x[:, i]", "det": "ts.linalg.det(x)",
    "inverse": "ts.linalg.inv(x)", "bmm": "x @ y", "mv": "x @ y", "cholesky": "ts.linalg.cholesky(x)",
    "register_hook": "ts.custom_vjp gives a function a backward pass of its own", "values": "a tensor is its values",
    "to_device": "x.to(device)",
}


def missing(name: str) -> str:
    """The text of the AttributeError for ``x.name``."""
    methods = [n for n in dir(Tensor) if not n.startswith("_")]
    functions = [n for n in dir(NAMESPACE) if not n.startswith("_") and callable(getattr(NAMESPACE, n))]
    text = f"a tensor has no attribute {name!r}"
    if name in INSTEAD:
        return f"{text}; instead: {INSTEAD[name]}"
    if name in functions:
        return f"{text}; there is a function: ts.{name}(x)"
    plain = name.removesuffix("_")
    if plain != name and plain in (*methods, *functions):
        return f"{text}; in place: x[...] = {f'x.{plain}(...)' if plain in methods else f'ts.{plain}(x, ...)'}"
    return text + suggest(name, [*methods, *functions])
