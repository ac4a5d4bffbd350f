"""The operator graph of the function being traced: ``graph.backward(loss)``."""

from __future__ import annotations

from typing import Any

from .errors import DerivativeError
from .tracing.tensor import Tensor
from .transforms.in_scope import gradient_of


def backward(loss: Any, wrt: Any = None) -> Any:
    """The gradient of ``loss`` by ``wrt``, inside the function that computes it: ``ts.grad(loss, wrt)``.

    Without ``wrt``, by all parameters in scope, as a dict by name.

    Raises:
        DerivativeError: outside a traced function, or ``loss`` is not a scalar tensor.
    """
    if not isinstance(loss, Tensor):
        raise DerivativeError(f"graph.backward() takes a tensor, not a {type(loss).__name__}",
                              hints=["Differentiate functions: ts.grad(f)"])
    return gradient_of(loss, wrt)


__all__ = ["backward"]
