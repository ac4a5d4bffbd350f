"""A simulated NVIDIA device: memory of the host, launches run by the tile interpreter.  The runtime on top is the real one."""

import ctypes
import itertools

import numpy as np

from tessera.ir import interpret_tile
from tessera.ir.core import BufferType
from tessera.runtime import gpu as runtime
from tessera.targets.nvidia import driver, kernels
from tessera.types.dims import evaluate


class Stream:
    number = 1
    handle = 1

    def __init__(self):
        self.blocks, self.sizes, self.held = {}, {}, 0

    def synchronize(self):
        """Nothing is ever pending."""


class Gpu:
    """One device; ``blocks`` are the allocations that are out."""

    number, capability, units, name = 0, (9, 0), 4, "simulated H200"

    def __init__(self):
        self.blocks, self.pending, self.stream, self.launches = {}, [], Stream(), 0
        self.entered = 0

    def enter(self):
        self.entered += 1

    def allocate(self, nbytes, stream=None):
        block = (ctypes.c_uint8 * (nbytes + 64))()
        ctypes.memset(block, 0xFF, nbytes + 64)  # whatever is not written is NaN
        at = -(-ctypes.addressof(block) // 64) * 64
        self.blocks[at] = block
        return at

    def free(self, pointer, stream):
        self.blocks.pop(pointer, None)

    def upload(self, pointer, host, nbytes, stream=None):
        ctypes.memmove(pointer, host, nbytes)

    def download(self, host, pointer, nbytes, stream=None):
        ctypes.memmove(host, pointer, nbytes)

    def fill(self, pointer, byte, nbytes, stream=None):
        ctypes.memset(pointer, byte, nbytes)


class Parameters:
    def __init__(self, pointers, env, status):
        self.pointers, self.env, self.status = pointers, env, status


class Kernel(kernels.Kernel):
    """A kernel whose launch interprets its tile function."""

    def __init__(self, fn, module, ptx):
        self.fn, self.module = fn, module
        self.buffers = [a.type for a in fn.args if isinstance(a.type, BufferType)]
        self.sizes = tuple(fn.attrs.get("sizes", ()))

    def parameters(self, pointers, env, status=0, scratch=0):
        return Parameters(pointers, env, status)

    def launch(self, stream, p, blocks):
        arrays = []
        for at, t in zip(p.pointers, self.buffers, strict=True):
            shape = tuple(int(evaluate(d, p.env)) for d in t.shape)
            n = int(np.prod(shape)) * t.dtype.itemsize
            arrays.append(np.frombuffer((ctypes.c_uint8 * max(1, n)).from_address(at), np.uint8)[:n].view(t.dtype.np).reshape(shape))
        result = interpret_tile.run(self.fn, arrays, {n: p.env[n] for n in self.sizes}, races=False)
        if result.failure is not None and p.status:
            word = ctypes.c_uint64.from_address(p.status)
            word.value = min(word.value, result.failure.site << 48 | (int(result.failure.value) & (1 << 48) - 1))


class Graph:
    """Replays the launches recorded in it."""

    def __init__(self, stream):
        self.recorded = None

    def __enter__(self):
        Graph.recording = self
        return self

    def __exit__(self, *_):
        Graph.recording = None

    def nodes(self):
        return list(itertools.repeat(None, 64))


def install(monkeypatch):
    """Put a simulated device in place of the driver's first one; returns it."""
    device = Gpu()
    monkeypatch.setattr(driver, "gpu", lambda number=0: device)
    monkeypatch.setattr(driver, "count", lambda: 1)
    monkeypatch.setattr(kernels, "Kernel", Kernel)
    monkeypatch.setattr(runtime, "GRAPH_AFTER", 1 << 30)  # plain launches
    monkeypatch.setattr(runtime.GpuCompiler, "_ptx", lambda self, name, text, tile: lambda: b"")
    runtime.compiler.cache_clear()
    from tessera import device as room
    room._real.cache_clear()
    monkeypatch.setattr(room, "_real", lambda: (room.Device("gpu:0", device.name),))
    return device
