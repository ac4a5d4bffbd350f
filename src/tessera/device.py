"""Devices: ``ts.device("gpu:0")`` names one, and is a context manager for the tensors made inside; ``ts.current_device()``.

Programs run on the CPU.  ``TESSERA_SIM_DEVICES`` supplies simulated accelerators for code that places data: ``2`` for two of them, or
their models, ``A100,H100``.  A simulated device computes on the CPU, with the CPU's bits; what it has of its own is its name and its
memory: results stay on it, and operands of two devices are refused.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import optree

from .errors import ArgumentError, DeviceError, suggest
from .errors.boundary import describe
from .machine import host_cpu
from .settings import SIM_DEVICES
from .tracing.function import TracedFunction
from .tracing.placed import DeviceArray, payload_name, spoken, to_device
from .tracing.recorder import STATE
from .tracing.tensor import Tensor, make

LOGGER = logging.getLogger("tessera")
_KINDS = {"cuda": "gpu", "nvidia": "gpu"}


class Device(str):
    """A device by name, ``cpu`` or ``gpu:0``.  Equals its other names too: ``cuda:0``, its index, and its model, ``"A100"``."""

    __slots__ = ("model", "simulated")
    model: str
    simulated: bool

    def __new__(cls, name: str, model: str = "", simulated: bool = False) -> Device:
        self = super().__new__(cls, name)
        self.model, self.simulated = model, simulated
        return self

    @property
    def number(self) -> int:
        """Its number among devices of its kind."""
        return int(self.partition(":")[2] or 0)

    def peak_flops(self, dtype: Any = None) -> float:
        """Operations a second, measured once: a product of square matrices of ``dtype`` (f32 on a CPU, bf16 on a GPU), in which a
        multiplication and an addition are two operations.  A simulated device computes at the speed of the CPU."""
        return _peaks().flops(self, dtype)  # type: ignore[no-any-return]

    def peak_bandwidth(self) -> float:
        """Bytes a second between the device and its memory, measured once: a copy, which reads and writes."""
        return _peaks().bandwidth(self)  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int) and not isinstance(other, bool):
            return not str.__eq__(self, "cpu") and other == self.number
        if isinstance(other, str):
            return str.__eq__(self, _canonical(other)) or _names_model(other, self.model)
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    __hash__ = str.__hash__

    def __repr__(self) -> str:
        return f"device({str.__repr__(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Device, (str.__str__(self), self.model, self.simulated)

    def __enter__(self) -> Device:
        if STATE.trace is not None:
            _stated(self, f'with ts.device("{self}")')
        STATE.outer_devices = (*STATE.outer_devices, STATE.device)
        STATE.device = self
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if not STATE.outer_devices:
            raise ArgumentError(f'the block of ts.device("{self}") ends, and none was begun here', hints=['Write with ts.device("…"):'])
        *outer, STATE.device = STATE.outer_devices
        STATE.outer_devices = tuple(outer)


CPU = Device("cpu")
_MAKERS = {"NVIDIA", "TESLA", "GEFORCE", "AMD", "INSTINCT", "INTEL"}
_SAME_CODE = {"H200": "H100", "H800": "H100", "H20": "H100", "GH200": "H100", "A800": "A100", "A30": "A100"}
"""Models that run what was specialised for another: they have its compute capability."""


def _peaks() -> Any:
    return importlib.import_module("tessera.autotune.peaks")


def _words(model: str) -> list[str]:
    return [w for w in re.split(r"[\s-]+", model.upper()) if w and w not in _MAKERS]


def _names_model(name: str, model: str) -> bool:
    """Whether ``name`` is how people call a model: ``"H200"`` for ``NVIDIA H200``, ``"A100"`` for ``NVIDIA A100-SXM4-80GB``."""
    short, full = _words(name), _words(model)
    return bool(short) and full[:len(short)] == short


def _canonical(name: str) -> str:
    kind, colon, index = name.strip().lower().partition(":")
    kind = _KINDS.get(kind, kind)
    return kind if kind == "cpu" and index in ("", "0") else f"{kind}:{index if colon else 0}"


@functools.cache
def _real() -> tuple[Device, ...]:
    """The NVIDIA devices that the driver knows."""
    if importlib.util.find_spec("cuda") is None:
        return ()
    from .targets.nvidia import driver
    return tuple(Device(f"gpu:{i}", driver.gpu(i).name) for i in range(driver.count()))


def get_devices() -> list[Device]:
    """Every device there is: the CPU, then NVIDIA's, or simulated ones where those are asked for."""
    if not SIM_DEVICES.get():
        return [CPU, *_real()]
    return [CPU, *(Device(f"gpu:{i}", m, simulated=True) for i, m in enumerate(SIM_DEVICES.get()))]


def backend() -> str:
    """What programs compile for without being told: ``cuda sm_90a`` where there is an NVIDIA device, else the CPU and its level.

    Says so once, in one line, to Python's logger ``tessera``.
    """
    return _backend()


@functools.cache
def _backend() -> str:
    there = _real()
    if there:
        from .targets.nvidia import driver
        major, minor = driver.gpu(0).capability
        found = f"cuda sm_{major}{minor}{'a' if major >= 9 else ''}"
        LOGGER.info("backend: %s (%s)", found, there[0].model)
        return found
    m = host_cpu()
    LOGGER.info("backend: cpu %s; no GPU was found, programs run on the CPU", m.cpu)
    return f"cpu {m.cpu}"


def _intel(name: str) -> Device:
    """One of Intel's OpenCL devices; they are looked for when they are named."""
    from .runtime.opencl import compiler
    return Device(name, compiler(name).device.name)


def find(name: Any) -> Device:
    """The device called ``name``: ``"cpu"``, ``"gpu:0"``, ``"cuda"``, a model such as ``"H100"``, a number, or a device.

    Raises:
        ArgumentError: this is no name of a device.
        DeviceError: there is no such device here.
    """
    if isinstance(name, Device):
        return name
    if type(name).__module__ == "torch" and type(name).__name__ == "device":
        name = str(name)
    if isinstance(name, np.integer):
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ArgumentError("a device goes by a name or a number", expected='"cpu", "gpu:0", 0', received=describe(name))
    if isinstance(name, str) and name.strip().lower().partition(":")[0] == "intel" and (_canonical(name).partition(":")[2].isdigit()):
        return _intel(_canonical(name))
    there = get_devices()
    for d in there:
        if d == name:
            return d
    kind, _, index = (name if isinstance(name, str) else f"gpu:{name}").lower().partition(":")
    if kind.strip() not in ("cpu", "gpu", *_KINDS) or (index and not index.isdigit()):
        raise ArgumentError(f"no device is called {name!r}{suggest(kind, ['cpu', 'gpu', 'intel', *_KINDS])}",
                            expected=", ".join(there), received=str(name))
    hints = ['Use ts.device("cpu")', "Set TESSERA_SIM_DEVICES=1 (or the models, A100,H100) for simulated devices"]
    if importlib.util.find_spec("cuda") is None:
        hints.insert(1, 'NVIDIA\'s devices are found through an extra: pip install "tessera-lang[cuda]"')
    raise DeviceError(f"there is no device {name!r} here", expected=" or ".join(there), received=str(name), hints=hints)


def current_device() -> Device:
    """The device of the innermost ``with ts.device(…)`` block; the CPU outside of one."""
    if STATE.trace is not None and STATE.trace.location is not None and STATE.device is STATE.trace.location.current:
        STATE.trace.location.asked_current = True
    return STATE.device or CPU


def _stated(device: Device, what: str) -> None:
    """The function being traced states that it runs on ``device``."""
    location = STATE.trace.location if STATE.trace is not None else None
    if location is not None:
        location.state(payload_name(device), what)


# -- where tensors live --------------------------------------------------------------------------------------------------------
def place(x: Any) -> Any:
    """Tensor ``x``, just made, on the current device."""
    where = STATE.device
    return to(x, where) if isinstance(x, Tensor) and where is not None and where != CPU and not x.is_traced else x


def device_of(x: Tensor) -> Device:
    """Where a tensor lives; a traced one: where the call runs that is traced for."""
    name = x._p.dtype.device if isinstance(x._p, DeviceArray) else _asked(x) if x.is_traced else None
    if name is None:
        return CPU
    if not name.startswith("simulated:"):
        return find(name)
    known = SIM_DEVICES.get()
    number = int(name.partition(":")[2])
    return Device(spoken(name), known[number] if number < len(known) else "simulated", simulated=True)


def _asked(x: Tensor) -> str | None:
    location = x._p.trace.location
    if location is None:
        return None
    location.asked = True
    device: str | None = location.device
    return device


def names_device(x: Any) -> bool:
    """True for what :func:`find` reads as a device, and no element type is called."""
    return isinstance(x, Device | int | np.integer) or (type(x).__module__ == "torch" and type(x).__name__ == "device") or (
        isinstance(x, str) and (x.lower().partition(":")[0] in ("cpu", "gpu", "intel", *_KINDS) or x.partition(":")[2].isdigit()))


def to(x: Tensor, target: Any) -> Tensor:
    """The tensor on a device: itself where it lives there, else a copy.

    Raises:
        DeviceError: there is no such device, or the tensor is of a traced function that runs on another one.
    """
    device = find(target)
    if x.is_traced:
        _stated(device, f'.to("{device}")')
        return x
    if device == device_of(x):
        return x
    if device == CPU:
        return x.cpu()
    return make(to_device(x._concrete("to(device)"), payload_name(device) or "cpu"))


def moved(cast: Callable[..., Any], x: Tensor, target: Any = None, *args: Any, device: Any = None, **kwargs: Any) -> Any:
    """``x.to(target)``: :func:`to` where ``target`` (or ``device=``) is a device, else ``cast``; both where both are given."""
    if names_device(target):
        there = to(x, target)
        return cast(there, *args, **kwargs) if args or kwargs else there
    out = x if device is None else to(x, device)
    return out if target is None else cast(out, target, *args, **kwargs)


def placing(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes tensors, on the current device; the ``_like`` forms make theirs where their example lives."""
    like = f.__name__.endswith("_like")

    def make(*args: Any, **kwargs: Any) -> Any:
        where = kwargs.pop("device", None)
        if where is not None:
            wanted = find(where)
            return to(f(*args, **kwargs), wanted)
        out = f(*args, **kwargs)
        after_another = like and args and isinstance(args[0], Tensor)
        return out if STATE.device is None or after_another else place(out)

    return functools.update_wrapper(make, f)


# -- variants ------------------------------------------------------------------------------------------------------------------
class Specialized:
    """One body compiled once a device model.  What a function has (``graph_ir``, ``trace`` …) is that of the variant a call would run.

    Attributes:
        variants: the functions by model.
        general: the function for any other device.
    """

    def __init__(self, fn: Callable[..., Any], models: tuple[str, ...]):
        functools.update_wrapper(self, fn)
        self.general = TracedFunction(fn)
        self.variants = {m: TracedFunction(_under(fn, Device("gpu:0", m, simulated=True))) for m in models}

    def select(self, device: Any = None) -> TracedFunction:
        """The function that a call on ``device`` (the current one) runs: its model's, else that of a model with the same code."""
        here = current_device() if device is None else device
        same = [other for model, other in _SAME_CODE.items() if here == model]
        return next((self.variants[m] for wanted in (here, *same) for m in self.variants if wanted == m), self.general)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        there, here = _accelerator((args, kwargs)), current_device()
        return self.select(here if there is None or str.__eq__(there, here) else there)(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("general", "variants"):
            raise AttributeError(name)
        return getattr(self.select(), name)

    def __reduce__(self) -> Any:
        return self.__qualname__  # as Python pickles functions: by name

    def __repr__(self) -> str:
        return f"<tessera function {self.__name__}{self.general.signature} for {', '.join(self.variants)}>"


def _accelerator(arguments: Any) -> Device | None:
    """The device of the first tensor that lives on one, which is where a call runs; None: none does."""
    found = (device_of(x) for x in optree.tree_leaves(arguments) if isinstance(x, Tensor))
    return next((d for d in found if d != CPU), None)


def _under(fn: Callable[..., Any], device: Device) -> Callable[..., Any]:
    @functools.wraps(fn)
    def body(*args: Any, **kwargs: Any) -> Any:
        saved, STATE.device = STATE.device, device  # what Python sees; the call itself may run elsewhere
        try:
            return fn(*args, **kwargs)
        finally:
            STATE.device = saved

    return body


def specialize_for(*models: str) -> Callable[[Callable[..., Any]], Specialized]:
    """``@ts.specialize_for("A100", "H100")``: one variant a device model from one body.

    ``ts.current_device() == "A100"`` inside the body is decided while a variant is traced, so that no test of it is left.

    Raises:
        ArgumentError: no models, or one that is no text.
    """
    if not models or not all(isinstance(m, str) and m for m in models):  # a function: the decorator without its models
        raise ArgumentError("specialize_for() takes the names of device models", expected='specialize_for("A100", "H100")',
                            received=f"specialize_for({', '.join(map(repr, models))})")

    def decorate(fn: Callable[..., Any]) -> Specialized:
        if not callable(fn):
            raise ArgumentError(f"specialize_for() decorates a function, not {describe(fn)}", received=describe(fn))
        return Specialized(fn.fn if isinstance(fn, TracedFunction) else fn, models)

    return decorate


class _Callable(ModuleType):
    def __call__(self, name: Any) -> Device:
        return find(name)


sys.modules[__name__].__class__ = _Callable

__all__ = ["CPU", "Device", "Specialized", "backend", "current_device", "device_of", "find", "get_devices", "specialize_for"]
