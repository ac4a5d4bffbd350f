"""Programs built by hand: a Schedule function in text, tile functions for their grids, and kernels in LLVM IR."""

import ctypes

import numpy as np

from tessera.ir.text import parse_function
from tessera.machine import host_cpu
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu import abi, frame, pool
from tessera.targets.cpu.loader import load
from tessera.targets.cpu.pool_ir import pool_ir
from tessera.targets.cpu.program import Kernel, arena_bytes, emit_program, launch_work
from tessera.types.dims import evaluate

_cache = {}


def compile_ir(text, name="module"):
    m = host_cpu()
    if text not in _cache:
        _cache[text] = workers().compile(Request(text, m.triple, m.cpu, m.llvm_features, name=name))
    return _cache[text]


def native():
    return pool.installed() or pool.install(compile_ir(pool_ir(host_cpu().triple.split("-")[0]), "pool"))


def elementwise(name, expression, operands=1, width=16, size="N", grid="N//16"):
    """A kernel ``out[i] = expression(a, b…)`` over whole vectors; ``expression`` defines %r."""
    params = ", ".join([f"ptr %b{i}" for i in range(operands + 1)] + ["i64 %N", "ptr %ctx", "i64 %begin", "i64 %end"])
    loads = "\n".join(f"  %p{i} = getelementptr float, ptr %b{i}, i64 %o\n  %{'abcd'[i]} = load <{width} x float>, ptr %p{i}, align 4"
                      for i in range(operands))
    ll = f"""define void @{name}({params}) {{
entry:
  br label %loop
loop:
  %i = phi i64 [%begin, %entry], [%i1, %loop]
  %o = mul i64 %i, {width}
{loads}
  {expression}
  %q = getelementptr float, ptr %b{operands}, i64 %o
  store <{width} x float> %r, ptr %q, align 4
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %end
  br i1 %more, label %loop, label %out
out:
  ret void
}}"""
    bufs = ", ".join(f"%b{i}: buf<f32[{size}]>" for i in range(operands + 1))
    tile = parse_function(f'tile @{name}({bufs}, %{size}: int64) with {{grid = (<{grid}>,), sizes = ("{size}",), '
                          f"writes = ({operands},)}} {{ return() }}")
    return tile, ll


class Native:
    """A loaded program that runs on numpy arrays."""

    def __init__(self, sched_text, kernels, *, parallel=1, patience=1 << 20):
        self.native = native()
        self.fn = parse_function(sched_text)
        found = {}
        functions = [self.fn, *self.fn.functions.values()]
        for f in functions:
            for op in f.walk():
                if op.name in ("kernel", "template"):
                    found[op] = Kernel(op.attrs["name"], kernels[op.attrs["name"]][0])
        self.work = launch_work(self.fn, found)
        self.ir = emit_program(self.fn, found)
        objects = [compile_ir(self.ir, "program"), *[compile_ir(ll, n) for n, (_, ll) in kernels.items()]]
        self.image = load(objects, self.native.symbols)
        self.parallel, self.patience = parallel, patience
        self.host = None
        self.stop = 0

    def __call__(self, *arrays, sizes=()):
        env = dict(sizes)
        memory, address = pool.aligned_bytes(frame.FRAME_BYTES)
        arena, arena_at = pool.aligned_bytes(evaluate(arena_bytes(self.fn), env) + 1)
        table = (ctypes.c_uint64 * len(arrays))(*[a.__array_interface__["data"][0] for a in arrays])
        numbers = (ctypes.c_int64 * max(1, len(env)))(*[env[n] for n in self.fn.attrs.get("sizes", ())])

        def put(offset, value):
            ctypes.c_uint64.from_address(address + offset).value = value

        put(abi.ARENA, arena_at)
        put(abi.BUFFERS, ctypes.addressof(table))
        put(abi.SIZES, ctypes.addressof(numbers))
        put(frame.PROGRAM, self.image.symbols["program"])
        put(frame.POOL_CELL, pool.cell_address())
        put(frame.PARALLEL, self.parallel)
        put(frame.PATIENCE, self.patience)
        if self.host is not None:
            put(frame.HOST, ctypes.cast(self.host, ctypes.c_void_p).value)
        pool.ensure_started()
        self.code = self.native.run(address)
        self.status = ctypes.c_uint64.from_address(address + abi.STATUS).value
        self.stop = ctypes.c_uint64.from_address(address + frame.STOP).value
        del memory, arena
        return self.code


def floats(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)
