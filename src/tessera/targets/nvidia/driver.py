"""CUDA's driver API: devices, memory in stream order, streams, events, modules, tensor maps, graphs.

Everything goes through ``cuda.bindings`` (the extra ``cuda``); nothing of the toolkit is needed.  One device's primary context is shared
with other libraries of the process, so their pointers are ours.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

from ...errors import DeviceError, TesseraError
from ...settings import CACHE, CACHE_LIMIT, private_folder
from ...types.dtypes import DType


class CudaError(TesseraError):
    """The driver refused a call."""


@functools.cache
def api() -> Any:
    """The driver's functions.

    Raises:
        DeviceError: ``cuda-bindings`` or the driver is not installed.
    """
    try:
        from cuda.bindings import driver  # type: ignore[import-not-found,unused-ignore]
        keep_code()
        code, *_ = driver.cuInit(0)
    except (ImportError, RuntimeError, OSError) as e:
        raise DeviceError("NVIDIA devices need their driver and the package cuda-bindings", received=str(e)[:200],
                          hints=["pip install 'tessera-lang[cuda]'"]) from None
    if int(code):
        raise DeviceError("the NVIDIA driver does not start", received=str(code))
    return driver


def keep_code() -> None:
    """Let the driver keep what it assembles beside the compile cache: it reads these variables when it starts.  A place that the user
    named, or that another library's start has settled, remains."""
    root = CACHE.get()
    if "CUDA_CACHE_PATH" in os.environ or "CUDA_CACHE_DISABLE" in os.environ or root is None or not private_folder(root):
        return
    os.environ["CUDA_CACHE_PATH"] = str(root / "cuda")
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(min(CACHE_LIMIT.get(), (1 << 32) - 1)))  # the driver's own limit


def call(name: str, *args: Any) -> Any:
    """Call a driver function by name; its results.

    Raises:
        CudaError: with the driver's own words.
    """
    d = api()
    code, *results = getattr(d, name)(*args)
    if int(code):
        words = d.cuGetErrorString(code)[1]
        raise CudaError(f"{name}: {words.decode() if isinstance(words, bytes) else code}")
    return results[0] if len(results) == 1 else tuple(results) or None


@functools.cache
def count() -> int:
    """How many devices there are; 0 without a driver."""
    try:
        return int(call("cuDeviceGetCount"))
    except (DeviceError, CudaError):
        return 0


KEPT_BYTES = 1 << 33
"""Memory that a stream keeps for its own reuse; more goes back to the driver's pool."""


def block_size(nbytes: int) -> int:
    """The size of the block that serves ``nbytes``: at most an eighth larger."""
    if nbytes <= 512:
        return 512
    step = max(512, 1 << (nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


class Stream:
    """A queue of work; ``handle`` is the driver's."""

    def __init__(self) -> None:
        self.handle = call("cuStreamCreate", 1)  # does not wait for the default stream
        self.number = int(self.handle)
        self.blocks: dict[int, list[int]] = {}  # sizes -> memory that was given back
        self.sizes: dict[int, int] = {}  # of memory that is out
        self.held = 0

    def synchronize(self) -> None:
        call("cuStreamSynchronize", self.handle)


class Event:
    """A point in a stream; with ``timed``, two give the milliseconds between them."""

    def __init__(self, timed: bool = False) -> None:
        self.handle = call("cuEventCreate", 0 if timed else 2)

    def record(self, stream: Stream) -> Event:
        call("cuEventRecord", self.handle, stream.handle)
        return self

    def synchronize(self) -> None:
        call("cuEventSynchronize", self.handle)

    def since(self, start: Event) -> float:
        """Milliseconds after another event."""
        return float(call("cuEventElapsedTime", start.handle, self.handle))


class Gpu:
    """One device with its context and memory pool; streams belong to threads."""

    def __init__(self, number: int):
        d = api()
        self.number = number
        self.device = call("cuDeviceGet", number)
        self.context = call("cuDevicePrimaryCtxRetain", self.device)
        self.enter()
        self.name = call("cuDeviceGetName", 128, self.device).decode().rstrip("\0")
        attribute = d.CUdevice_attribute
        version = (getattr(attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{x}") for x in ("MAJOR", "MINOR"))
        self.capability = tuple(int(call("cuDeviceGetAttribute", v, self.device)) for v in version)
        self.units = int(call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, self.device))
        self.pool = call("cuDeviceGetDefaultMemPool", self.device)
        forever = d.cuuint64_t((1 << 64) - 1)  # freed memory stays ours
        call("cuMemPoolSetAttribute", self.pool, d.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, forever)
        self.pending: list[Any] = []  # (program, sizes, status word, stream) of programs whose checks nobody has looked at
        self._local = threading.local()

    def enter(self) -> None:
        """Make this device's context the thread's."""
        call("cuCtxSetCurrent", self.context)

    @property
    def stream(self) -> Stream:
        """The calling thread's stream."""
        found: Stream | None = getattr(self._local, "stream", None)
        if found is None:
            self.enter()
            found = self._local.stream = Stream()
        return found

    def allocate(self, nbytes: int, stream: Stream | None = None) -> int:
        """Memory usable by what follows in the stream: a block that the stream has given back, else from the driver's pool."""
        s = stream or self.stream
        size = block_size(nbytes)
        held = s.blocks.get(size)
        if held:
            pointer = held.pop()
            s.held -= size
        else:
            pointer = int(call("cuMemAllocAsync", size, s.handle))
        s.sizes[pointer] = size
        return pointer

    def free(self, pointer: int, stream: Stream) -> None:
        """Give memory back: what follows in the stream may have it."""
        size = stream.sizes.pop(pointer)
        if stream.held + size > KEPT_BYTES:
            call("cuMemFreeAsync", pointer, stream.handle)
        else:
            stream.blocks.setdefault(size, []).append(pointer)
            stream.held += size

    def upload(self, pointer: int, host: int, nbytes: int, stream: Stream | None = None) -> None:
        if nbytes:
            call("cuMemcpyHtoDAsync", pointer, host, nbytes, (stream or self.stream).handle)

    def download(self, host: int, pointer: int, nbytes: int, stream: Stream | None = None) -> None:
        """Copy to the host, and wait."""
        s = stream or self.stream
        if nbytes:
            call("cuMemcpyDtoHAsync", host, pointer, nbytes, s.handle)
        s.synchronize()

    def copy(self, to: int, pointer: int, nbytes: int, stream: Stream | None = None) -> None:
        if nbytes:
            call("cuMemcpyDtoDAsync", to, pointer, nbytes, (stream or self.stream).handle)

    def fill(self, pointer: int, byte: int, nbytes: int, stream: Stream | None = None) -> None:
        if nbytes:
            call("cuMemsetD8Async", pointer, byte, nbytes, (stream or self.stream).handle)

    def in_use(self) -> int:
        """Bytes of the pool that are handed out."""
        d = api()
        return int(call("cuMemPoolGetAttribute", self.pool, d.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT))


@functools.cache
def gpu(number: int = 0) -> Gpu:
    """The device of this number.

    Raises:
        DeviceError: there is none.
    """
    if not 0 <= number < count():
        raise DeviceError(f"there is no device 'gpu:{number}' here", expected=f"{count()} NVIDIA devices")
    return Gpu(number)


# -- code ------------------------------------------------------------------------------------------------------------------
LOG_BYTES = 1 << 16


class Code:
    """Loaded machine code, from PTX by the driver's assembler, which keeps it in its own cache on disk; ``log`` is what that said.

    (Its linker is not used: it compiles for linking with other units, where ``setmaxnreg`` is ignored and products are serialised.)

    Raises:
        CudaError: the driver refuses the code, with its messages.
    """

    def __init__(self, ptx: bytes):
        d = api()
        info, errors = bytearray(LOG_BYTES), bytearray(LOG_BYTES)
        o = d.CUjit_option
        options = {o.CU_JIT_INFO_LOG_BUFFER: info, o.CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES: LOG_BYTES, o.CU_JIT_ERROR_LOG_BUFFER: errors,
                   o.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: LOG_BYTES, o.CU_JIT_LOG_VERBOSE: 1}
        try:
            self.module = call("cuModuleLoadDataEx", ptx + b"\0", len(options), list(options), list(options.values()))
        except CudaError as e:
            raise CudaError(f"{e}: {errors.rstrip(bytes(1)).decode(errors='replace')[:2000]}") from None
        self.log = info.rstrip(b"\0").decode(errors="replace")

    def function(self, name: str, shared: int) -> Any:
        """A kernel, allowed ``shared`` bytes of dynamic shared memory."""
        found = call("cuModuleGetFunction", self.module, name.encode())
        if shared > 48 << 10:
            call("cuFuncSetAttribute", found, api().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        return found

    def unload(self) -> None:
        api().cuModuleUnload(self.module)


# -- tensor maps -----------------------------------------------------------------------------------------------------------
_MAP_TYPES = {"bf16": "BFLOAT16", "f16": "FLOAT16", "f32": "FLOAT32", "f64": "FLOAT64", "int32": "INT32", "int64": "INT64",
              "uint8": "UINT8", "int8": "UINT8",
              "uint16": "UINT16", "int16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "fp8_e4m3": "UINT8",
              "fp8_e5m2": "UINT8", "bool": "UINT8"}


@functools.lru_cache(maxsize=1024)
def tensor_map(pointer: int, dtype: DType, shape: tuple[int, ...], box: tuple[int, int], swizzle: int) -> Any:
    """How the copy engine sees a dense row-major buffer, in boxes along its last two axes (128 bytes at a multiple of 64).

    Raises:
        CudaError: the buffer cannot be copied so: its rows are no multiple of 16 bytes, or it is not aligned to 16.
    """
    d = api()
    rank = len(shape)
    row = shape[-1] * dtype.itemsize
    if row % 16 or pointer % 16:
        raise CudaError(f"the copy engine takes rows of a multiple of 16 bytes at a multiple of 16; these are {row} bytes at {pointer:#x}")
    u64, u32 = d.cuuint64_t, d.cuuint32_t
    strides, step = [], dtype.itemsize
    for n in reversed(shape[1:]):
        step *= n
        strides.append(u64(step))
    boxes = [u32(box[1]), u32(box[0]), *[u32(1)] * (rank - 2)]
    kind = getattr(d.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_MAP_TYPES[dtype.name]}")
    turn = getattr(d.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{f'{swizzle}B' if swizzle else 'NONE'}")
    return call("cuTensorMapEncodeTiled", kind, rank, pointer, [u64(max(1, n)) for n in reversed(shape)], strides, boxes, [u32(1)] * rank,
                d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, turn, d.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)


def map_bytes(m: Any) -> bytes:
    """The 128 bytes of a tensor map."""
    return b"".join(int(x).to_bytes(8, "little") for x in m.opaque)


# -- launches --------------------------------------------------------------------------------------------------------------
class Parameters:
    """The arguments of one launch, in memory that the driver reads: pointers and sizes (8 bytes each), then tensor maps."""

    def __init__(self, words: Sequence[int], maps: Sequence[bytes] = ()):
        self.words = (ctypes.c_uint64 * max(1, len(words)))(*[w & ((1 << 64) - 1) for w in words])
        self.raw = (ctypes.c_uint8 * (128 * len(maps) + 64))()
        base = -(-ctypes.addressof(self.raw) // 64) * 64
        for i, m in enumerate(maps):
            ctypes.memmove(base + 128 * i, m, 128)
        first = ctypes.addressof(self.words)
        self.table = (ctypes.c_void_p * (len(words) + len(maps)))(*[first + 8 * i for i in range(len(words))],
                                                                   *[base + 128 * i for i in range(len(maps))])
        self.address = ctypes.addressof(self.table)


@functools.cache
def _launcher() -> Any:
    return api().cuLaunchKernel


def launch(function: Any, blocks: int, threads: int, shared: int, stream: Stream, parameters: Parameters) -> None:
    """Start a kernel; its cluster's shape is part of its code."""
    code, = _launcher()(function, blocks, 1, 1, threads, 1, 1, shared, stream.handle, parameters.address, 0)
    if code:
        raise CudaError(f"cuLaunchKernel: {code}")


@functools.cache
def _graph_launch() -> Any:
    """The driver's function itself: a call with arguments in its own types costs a third less than through the bindings."""
    return ctypes.CDLL("libcuda.so.1").cuGraphLaunch


class Graph:
    """A sequence of launches, recorded from a stream and replayed as one."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.executable: Any = None

    def __enter__(self) -> Graph:
        call("cuStreamBeginCapture", self.stream.handle, api().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.graph = call("cuStreamEndCapture", self.stream.handle)
        if kind is None:
            self.executable = call("cuGraphInstantiate", self.graph, 0)
            self._start = functools.partial(_graph_launch(), ctypes.c_void_p(int(self.executable)), ctypes.c_void_p(self.stream.number))

    def launch(self) -> None:
        code = self._start()
        if code:
            raise CudaError(f"cuGraphLaunch: {code}")

    def update(self, node: Any, function: Any, blocks: int, threads: int, shared: int, parameters: Parameters) -> None:
        """Other arguments for one launch of the instantiated graph."""
        p = api().CUDA_KERNEL_NODE_PARAMS()
        p.func = function
        p.gridDimX, p.gridDimY, p.gridDimZ = blocks, 1, 1
        p.blockDimX, p.blockDimY, p.blockDimZ = threads, 1, 1
        p.sharedMemBytes = shared
        p.kernelParams = parameters.address
        call("cuGraphExecKernelNodeSetParams", self.executable, node, p)

    def nodes(self) -> list[Any]:
        """The nodes in the order in which they were recorded."""
        _, n = call("cuGraphGetNodes", self.graph, 0)
        found, _ = call("cuGraphGetNodes", self.graph, n)  # in the order of their making
        return list(found)


__all__ = ["Code", "CudaError", "Event", "Gpu", "Graph", "Parameters", "Stream", "api", "block_size", "call", "count", "gpu", "launch",
           "map_bytes", "tensor_map"]
