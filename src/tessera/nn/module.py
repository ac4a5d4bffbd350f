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

from ..device import names_device
from ..tracing.state import convert

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
        new = {name: Parameter(np.asarray(state[name]), t.dtype).to(t.device) for name, t in own.items() if name in state}
        for name, value in new.items():
            ts.assign(own[name], value)
        return self

    def to(self: M, *target: Any, dtype: Any = None, device: str | None = None) -> M:
        """Convert every floating-point parameter to a dtype, move every tensor to a device, or both; returns the module.

        The tensors stay the same objects: ties between modules hold, an optimiser goes on with them, and functions that captured them
        are traced again at their next call.

        Args:
            target: a dtype and a device such as ``"gpu:0"``, in any order; either may be left out.

        Raises:
            DeviceError: there is no such device.
            EffectError: inside a traced function.
        """
        dtype, device = _target(target, dtype, device)
        new = {id(t): (t, self._converted(t, dtype, device)) for t in self.parameters()}  # ties are converted once
        for old, value in new.values():  # nothing has changed where a conversion failed
            if value is not old:
                convert(old, value)
        return self

    @staticmethod
    def _converted(t: ts.Tensor, dtype: Any, device: str | None) -> ts.Tensor:
        out = t.to(dtype) if dtype is not None and t.dtype.is_float else t
        return out.to(device) if device is not None else out

    def __repr__(self) -> str:
        inner = [f"  {name}: {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        own = ", ".join(f"{n}: {t.dtype}{list(t.shape)}" for n, t in vars(self).items() if isinstance(t, ts.Tensor))
        head = f"{type(self).__name__}({own})"
        return head if not inner else head + " {\n" + "\n".join(inner) + "\n}"


def _target(given: tuple[Any, ...], dtype: Any, device: str | None) -> tuple[Any, str | None]:
    """(dtype, device) of what ``to`` was asked for."""
    for x in given:
        if names_device(x):
            device, twice = x, device
        else:
            dtype, twice = x, dtype
        if twice is not None:
            raise ts.errors.ArgumentError("to() takes one dtype and one device", received=f"{twice!r} and {x!r}")
    if dtype is None and device is None:
        raise ts.errors.ArgumentError("to() needs a dtype or a device", expected='to(ts.bf16), to("gpu:0") or both')
    return dtype, device


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from _items(f"{name}.{i}", v)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _items(f"{name}.{k}", v)
    else:
        yield name, value
