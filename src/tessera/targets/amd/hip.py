"""The HIP runtime through ctypes: devices, memory, streams, loading code objects, launching.

Nothing of ROCm is needed to *compile*; this is the part that runs on a machine that has it.  It has been written against the
HIP runtime API reference and checked against a stand-in of the library (``tests/targets/amd``); it has not met hardware.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from ...errors import DeviceError

LIBRARIES = ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")
SUCCESS, OUT_OF_MEMORY, NO_DEVICE = 0, 2, 100
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3


@functools.cache
def library() -> Any:
    """The runtime's library.

    Raises:
        DeviceError: it is not installed.
    """
    for name in LIBRARIES:
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        lib.hipGetErrorString.restype = ctypes.c_char_p
        return lib
    raise DeviceError("the HIP runtime (libamdhip64) was not found", expected="an installed ROCm, on the loader's path",
                      hints=["Compile without a device: tessera show FILE:FUNCTION --stage asm --target amd"])


def check(status: int, what: str) -> None:
    """Raise what a call of the runtime reports.

    Raises:
        DeviceError: the status is no success.
    """
    if status == SUCCESS:
        return
    text = library().hipGetErrorString(status)
    message = text.decode(errors="replace") if text else f"error {status}"
    hints = ["Free tensors, or use smaller ones"] if status == OUT_OF_MEMORY else []
    raise DeviceError(f"{what}: {message}", hints=hints)


def available() -> bool:
    """True when the runtime is there and has a device."""
    try:
        return device_count() > 0
    except DeviceError:
        return False


def device_count() -> int:
    """How many devices the runtime sees.

    Raises:
        DeviceError: there is no runtime.
    """
    n = ctypes.c_int()
    status = library().hipGetDeviceCount(ctypes.byref(n))
    if status == NO_DEVICE:
        return 0
    check(status, "counting devices")
    return n.value


class Buffer:
    """Memory of the device; freed with the object."""

    def __init__(self, nbytes: int):
        self.pointer, self.nbytes = ctypes.c_void_p(), nbytes
        if nbytes:
            check(library().hipMalloc(ctypes.byref(self.pointer), ctypes.c_size_t(nbytes)), f"allocating {nbytes} bytes")

    def upload(self, address: int, nbytes: int) -> None:
        """Copy from host memory.

        Raises:
            DeviceError: more bytes than the buffer holds, or the runtime refuses.
        """
        self._copy(self.pointer, ctypes.c_void_p(address), nbytes, HOST_TO_DEVICE, "copying to the device")

    def download(self, address: int, nbytes: int) -> None:
        """Copy to host memory, after everything that was launched before."""
        self._copy(ctypes.c_void_p(address), self.pointer, nbytes, DEVICE_TO_HOST, "copying from the device")

    def _copy(self, to: Any, source: Any, nbytes: int, direction: int, what: str) -> None:
        if nbytes > self.nbytes:
            raise DeviceError(f"{what}: {nbytes} bytes do not fit a buffer of {self.nbytes}")
        if nbytes:
            check(library().hipMemcpy(to, source, ctypes.c_size_t(nbytes), direction), what)

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            library().hipFree(self.pointer)
            self.pointer = ctypes.c_void_p()


class Module:
    """A loaded code object."""

    def __init__(self, code_object: bytes):
        self._data = ctypes.create_string_buffer(code_object, len(code_object))
        self._handle = ctypes.c_void_p()
        check(library().hipModuleLoadData(ctypes.byref(self._handle), self._data), "loading a code object")
        self._functions: dict[str, ctypes.c_void_p] = {}

    def function(self, name: str) -> ctypes.c_void_p:
        """The kernel called ``name``.

        Raises:
            DeviceError: the module has none.
        """
        found = self._functions.get(name)
        if found is None:
            found = ctypes.c_void_p()
            check(library().hipModuleGetFunction(ctypes.byref(found), self._handle, name.encode()), f"looking up the kernel {name!r}")
            self._functions[name] = found
        return found

    def launch(self, name: str, blocks: int, threads: int, arguments: Sequence[Any], shared: int = 0, stream: Any = None) -> None:
        """Start a kernel of ``blocks`` times ``threads``; returns before it has run.

        Args:
            arguments: ctypes values, in the order of the kernel's parameters.
            shared: bytes of LDS beyond what the kernel declares.

        Raises:
            DeviceError: the runtime refuses the launch.
        """
        pointers = (ctypes.c_void_p * max(1, len(arguments)))(*[ctypes.cast(ctypes.pointer(a), ctypes.c_void_p) for a in arguments])
        check(library().hipModuleLaunchKernel(self.function(name), blocks, 1, 1, threads, 1, 1, shared, stream, pointers, None),
              f"launching the kernel {name!r}")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().hipModuleUnload(self._handle)
            self._handle = ctypes.c_void_p()


def synchronize() -> None:
    """Wait for everything that was launched.

    Raises:
        DeviceError: something failed meanwhile.
    """
    check(library().hipDeviceSynchronize(), "waiting for the device")


__all__ = ["Buffer", "Module", "available", "check", "device_count", "library", "synchronize"]
