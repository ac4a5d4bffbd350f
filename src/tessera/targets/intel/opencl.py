"""OpenCL through pyopencl: memory, kernels, one queue in order.

Intel's CPU runtime from PyPI (``pip install intel-opencl-rt pyopencl``) is found without any set-up of the system.
Memory is shared virtual memory, so that a buffer is an address and pointers into the middle of one are plain numbers.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CompileError, DeviceError
from ...machine import INTEL_CPU, INTEL_XE, INTEL_XE_HPC, host_cpu
from ...machine.simt import SimtMachine

Array = np.ndarray[Any, Any]
_RUNTIME = "libintelocl.so"
_SYSTEM_VENDORS = Path("/etc/OpenCL/vendors")
_OPTIONS = "CL_CONFIG_LLVM_OPTIONS"
# Division and square roots round as IEEE says wherever the device can; nothing is contracted or reordered.
_BUILD = ["-cl-fp32-correctly-rounded-divide-sqrt"]
_CORRECT_DIVISION = 1 << 7  # CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT


def _leave_out_the_pass(runtime: Path) -> None:
    """Skip the CPU compiler's pass that keeps values across barriers off the stack: in 2026.2 it dies on kernels of many such values, or
    does not, as addresses happen to fall.  Its options come by an environment variable; versions before know none that skips a pass, and
    end the process over what they do not know."""
    versions = [p.name.removeprefix(f"{_RUNTIME}.").split(".") for p in runtime.parent.glob(f"{_RUNTIME}.*")]
    if any([int(n) for n in v if n.isdigit()] >= [2026, 22] for v in versions):
        given = os.environ.get(_OPTIONS, "")
        if "-opt-disable" not in given:
            os.environ[_OPTIONS] = f"{given} -opt-bisect-verbose=0 -opt-disable=sycl-kernel-reduce-cross-barrier-values".strip()


def _offer_cpu_runtime() -> None:
    """Let the OpenCL loader find the CPU runtime of this Python environment beside the system's platforms; it reads its
    environment variable when it is first asked."""
    if "OCL_ICD_VENDORS" in os.environ:
        return
    found = next((p for root in (sys.prefix, sys.base_prefix) if (p := Path(root) / "lib" / _RUNTIME).exists()), None)
    if found is None:
        return
    system = sorted(_SYSTEM_VENDORS.glob("*.icd")) if _SYSTEM_VENDORS.is_dir() else []
    if not any("intelocl" in p.read_text(errors="replace") for p in system):
        _leave_out_the_pass(found)
    if not system:
        os.environ["OCL_ICD_VENDORS"] = str(found)
        return
    folder = Path(tempfile.mkdtemp(prefix="tessera-opencl-"))
    atexit.register(shutil.rmtree, folder, True)
    for p in system:
        shutil.copy(p, folder / p.name)
    (folder / "tessera-cpu.icd").write_text(f"{found}\n")
    os.environ["OCL_ICD_VENDORS"] = str(folder)


def _library() -> Any:
    """The module pyopencl, with Intel's CPU runtime of this Python environment among its platforms.

    Raises:
        DeviceError: pyopencl is not installed.
    """
    _offer_cpu_runtime()
    try:
        import pyopencl  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise DeviceError("there is no OpenCL here: pyopencl is not installed",
                          hints=["pip install 'tessera-lang[intel]'"]) from None
    warnings.filterwarnings("ignore", category=pyopencl.CompilerWarning)  # remarks on every kernel that was vectorised
    return pyopencl


def devices() -> list[Any]:
    """Intel's OpenCL devices, GPUs first; none where OpenCL is missing."""
    try:
        cl = _library()
        found = [d for p in cl.get_platforms() if "Intel" in p.name for d in p.get_devices()]
    except Exception:  # the loader reports a missing platform as an error of its own
        return []
    found = [d for d in found if d.svm_capabilities and "fpga" not in d.name.lower()]  # buffers are addresses
    return sorted(found, key=lambda d: d.type != cl.device_type.GPU)


def machine_of(device: Any, gpu: bool) -> SimtMachine:
    """The description of an OpenCL device.

    Matrix units serve sub-groups of 8 lanes on Xe-HPG and of 16 on Xe-HPC and later; the latter also read blocks of two dimensions.
    """
    if not gpu:
        return INTEL_CPU
    has = set(device.extensions.split())
    return INTEL_XE_HPC if {"cl_intel_subgroup_matrix_multiply_accumulate", "cl_intel_subgroup_2d_block_io"} <= has else INTEL_XE


class Block:
    """Device memory: an address, alive while the block is."""

    __slots__ = ("__weakref__", "address", "memory", "nbytes")

    def __init__(self, memory: Any, nbytes: int):
        self.memory, self.nbytes = memory, nbytes
        self.address = int(memory.svm_ptr)


class OpenCL:
    """One OpenCL device with its queue.

    Args:
        device: a pyopencl device.
    """

    def __init__(self, device: Any):
        cl = self.cl = _library()
        self.device = device
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        self.machine = machine_of(device, device.type == cl.device_type.GPU)
        self.name = device.name.strip() or "Intel OpenCL"

    # -- memory ------------------------------------------------------------------------------------------------------------
    def allocate(self, nbytes: int) -> Block:
        """Device memory of at least 64 bytes, whose address is a multiple of 64."""
        flags = self.cl.svm_mem_flags.READ_WRITE
        return Block(self.cl.SVMAllocation(self.context, max(64, -(-nbytes // 64) * 64), 64, flags, queue=self.queue), nbytes)

    def _at(self, address: int, nbytes: int) -> Any:
        """An address as what pyopencl takes for shared virtual memory: nothing is read here."""
        return self.cl.SVM((ctypes.c_uint8 * max(1, nbytes)).from_address(address))

    def write(self, address: int, array: Array) -> None:
        """Copy a dense host array to device memory."""
        if array.nbytes:
            data = np.require(array, requirements=["C", "W"]).reshape(-1).view(np.uint8)  # pyopencl takes no memory that is read-only
            self.cl.enqueue_copy(self.queue, self._at(address, data.nbytes), data)
            self.queue.finish()

    def read(self, address: int, array: Array) -> None:
        """Copy device memory to a dense host array; waits for all that was enqueued."""
        if array.nbytes:
            self.cl.enqueue_copy(self.queue, array.reshape(-1).view(np.uint8), self._at(address, array.nbytes))
        self.queue.finish()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the device, in the queue's order."""
        if nbytes:
            self.cl.enqueue_copy(self.queue, self._at(target, nbytes), self._at(source, nbytes))

    def finish(self) -> None:
        """Wait for all that was enqueued."""
        self.queue.finish()

    # -- kernels -----------------------------------------------------------------------------------------------------------
    def load(self, code: bytes, symbol: str) -> Any:
        """A kernel from a SPIR-V module.

        Raises:
            CompileError: the driver refuses it; the message has its log.
        """
        return self.build(code, symbol)[0]

    def build(self, code: bytes, symbol: str) -> tuple[Any, bytes]:
        """:meth:`load`, and the device's code, which :meth:`load_binary` takes."""
        try:
            program = self.cl.Program(self.context, code).build(options=self._options(), cache_dir=False)
            return self.cl.Kernel(program, symbol), bytes(program.get_info(self.cl.program_info.BINARIES)[0])
        except self.cl.Error as e:
            raise CompileError(f"OpenCL refuses the kernel {symbol!r}: {e}") from e

    def load_binary(self, binary: bytes, symbol: str) -> Any:
        """A kernel from what :meth:`build` gave, in this process or another; None: the driver does not take it."""
        try:
            program = self.cl.Program(self.context, [self.device], [binary]).build(options=self._options(), cache_dir=False)
            return self.cl.Kernel(program, symbol)
        except self.cl.Error:
            return None

    def _options(self) -> list[str]:
        return _BUILD if self.device.single_fp_config & _CORRECT_DIVISION else []

    def key(self) -> str:
        """What the device's code depends on beside a kernel's own: the device, its driver, and what its compiler was told."""
        d = self.device
        own = "" if d.type == self.cl.device_type.GPU else host_cpu().key()
        told = [*self._options(), os.environ.get(_OPTIONS, "")]
        return " ".join([d.platform.name, d.platform.version, d.name, d.driver_version, own, *told])

    def launch(self, kernel: Any, blocks: int, threads: int, shared: int, pointers: list[int], sizes: list[int]) -> None:
        """Enqueue ``blocks`` blocks of a kernel; parameters are pointers, then sizes, as :class:`~tessera.targets.simt.emit.Module`
        says (status word and scratch memory are the last two pointers)."""
        buffers, extra = pointers[:-2], pointers[-2:]
        set_arg = kernel.set_arg
        for i, p in enumerate(buffers):
            set_arg(i, self._at(p, 1))
        for i, n in enumerate(sizes):
            set_arg(len(buffers) + i, np.int64(n))
        for i, p in enumerate(extra):
            set_arg(len(buffers) + len(sizes) + i, self._at(p, 1))
        self.cl.enqueue_nd_range_kernel(self.queue, kernel, (blocks * threads,), (threads,))


__all__ = ["Block", "OpenCL", "devices"]
