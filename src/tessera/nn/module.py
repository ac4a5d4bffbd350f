"""``Module``: an object that owns tensors and other modules.

There is no hidden registry: the attributes *are* the module.  A tensor attribute is a parameter; lists, tuples and
dicts of modules count.  A traced function that uses a module captures its tensors by identity and reads them anew at
every call, so a weight that takes a new value (``load_state_dict``, an optimiser, ``ts.assign``) needs no recompilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

import tessera as ts

M = TypeVar("M", bound="Module")


def Parameter(value: Any, dtype: Any = None) -> ts.Tensor:
    """A tensor to be trained or loaded: ``value`` as a concrete tensor that shares no memory with it."""
    return ts.tensor(value, dtype=dtype)


_draw = True  # whether new parameters get random values


@contextmanager
def uninitialized() -> Iterator[None]:
    """Inside the block, layers draw no random weights: for models whose weights are loaded right after."""
    global _draw
    saved, _draw = _draw, False
    try:
        yield
    finally:
        _draw = saved


def initial(shape: tuple[int, ...], dtype: Any, draw: Callable[[], ts.Tensor]) -> ts.Tensor:
    """A parameter of ``shape``: what ``draw()`` gives, or zeros inside :func:`uninitialized`."""
    return draw().to(dtype) if _draw else ts.zeros(*shape, dtype=dtype)


class Module:
    """Base of all layers and models.  Define ``forward``; call the module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's computation; subclasses define it."""
        raise TypeError(f"{type(self).__name__} defines no forward(...)")

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(attribute path, module) of the modules directly inside this one."""
        for name, value in vars(self).items():
            for path, item in _items(name, value):
                if isinstance(item, Module):
                    yield path, item

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, ts.Tensor]]:
        """(dotted name, tensor), in the order of definition."""
        for name, value in vars(self).items():
            for path, item in _items(name, value):
                if isinstance(item, ts.Tensor):
                    yield prefix + path, item
                elif isinstance(item, Module):
                    yield from item.named_parameters(f"{prefix}{path}.")

    def parameters(self) -> list[ts.Tensor]:
        """Every tensor, in the order of definition."""
        return [t for _, t in self.named_parameters()]

    def num_parameters(self) -> int:
        """Elements of all parameters together."""
        return sum(int(np.prod(t.shape)) for t in self.parameters())

    def state_dict(self) -> dict[str, ts.Tensor]:
        """Dotted names to tensors."""
        return dict(self.named_parameters())

    def load_state_dict(self: M, state: Mapping[str, Any], strict: bool = True) -> M:
        """Give parameters new values by name; arrays are copied.

        Raises:
            CheckpointError: a name is missing or unknown (``strict``), or a shape differs; nothing is changed then.
        """
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unknown):
            parts = [f"it lacks {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}"] if missing else []
            parts += [f"it has the unknown {', '.join(unknown[:4])}{' …' if len(unknown) > 4 else ''}"] if unknown else []
            raise ts.errors.CheckpointError(f"the state does not fit {type(self).__name__}: {'; '.join(parts)}")
        for name in own.keys() & state.keys():
            if tuple(np.shape(state[name])) != tuple(own[name].shape):
                raise ts.errors.CheckpointError(
                    f"the shape of {name} is {list(np.shape(state[name]))} in the state and {list(own[name].shape)} in "
                    f"{type(self).__name__}")
        for name in own.keys() & state.keys():
            ts.assign(own[name], Parameter(np.asarray(state[name]), own[name].dtype))
        return self

    def _assign(self, path: str, value: ts.Tensor) -> None:
        target: Any = self
        *parents, last = path.split(".")
        for p in parents:
            target = target[int(p)] if isinstance(target, list | tuple) else target[p] if isinstance(target, dict) \
                else getattr(target, p)
        if isinstance(target, list | dict):
            target[int(last) if isinstance(target, list) else last] = value  # type: ignore[index]
        else:
            setattr(target, last, value)

    def to(self: M, dtype: Any) -> M:
        """Convert every floating-point parameter in place; returns the module."""
        for name, t in list(self.named_parameters()):
            if t.dtype.is_float:
                self._assign(name, t.to(dtype))
        return self

    def __repr__(self) -> str:
        inner = [f"  {name}: {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        own = ", ".join(f"{n}: {t.dtype}{list(t.shape)}" for n, t in vars(self).items() if isinstance(t, ts.Tensor))
        head = f"{type(self).__name__}({own})"
        return head if not inner else head + " {\n" + "\n".join(inner) + "\n}"


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from _items(f"{name}.{i}", v)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _items(f"{name}.{k}", v)
    else:
        yield name, value
