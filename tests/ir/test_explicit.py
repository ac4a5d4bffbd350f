# ruff: noqa: F821
"""The explicit level: its grammar, its meaning, and the races that the interpreter finds."""

import numpy as np
import pytest

import tessera as ts
from tessera.errors import KernelError
from tessera.ir import interpret_tile, text, tile
from tessera.ir.core import BufferType
from tessera.ir.graph import GrammarError
from tessera.ir.interpret_tile import TileError
from tessera.tiling import dsl
from tessera.tiling import explicit as x
from tessera.types.dtypes import bf16, f32

ROWS = 64


def program(body, shapes=((64, 64), (64, 64)), dtype=bf16, grid=(1,)):
    """A tile program over buffers b0, b1 … whose body is written with the explicit level."""
    types = [BufferType(dtype if i < len(shapes) - 1 else f32, s) for i, s in enumerate(shapes)]
    prog = dsl.TileProgram("p", [(f"b{i}", t) for i, t in enumerate(types)], grid=grid)
    return dsl.build(prog, dsl.tile_function(body))


def run(fn, seed=None):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([int(d) for d in a.type.shape]).astype(a.type.dtype.np) for a in fn.args]
    interpret_tile.run(fn, arrays, seed=seed)
    return arrays


def product(wait=True, fence=True, release_late=True, wait_product=True, steps=2):
    """C = sum of steps products of A and itself, with parts of the protocol left out on demand."""
    def body(a, c):
        ring = x.alloc_tiles(1, ROWS, 64, dtype=bf16)
        out = x.alloc_tiles(ROWS, 32, dtype=f32)
        full, empty = x.mbarriers(1), x.mbarriers(1)
        with x.role(registers=40, threads=1):
            for i in dsl.range(0, steps):
                empty.wait(0, (i & 1) ^ 1)
                full.expect(0, ring[0].nbytes)
                x.tma_load(ring[0], a, (0, 0), full[0])
        with x.role(registers=232):
            acc = x.uninitialized((64, 64))
            for i in dsl.range(0, steps):
                if wait:
                    full.wait(0, i & 1)
                acc = x.wgmma(acc, ring[0], ring[0].T, accumulate=i > 0)
                x.wgmma_commit()
                if release_late:
                    x.wgmma_wait()
                empty.arrive(0)
            if wait_product:
                acc = x.wgmma_wait(acc)
            for half in (0, 1):
                out.store(dsl.slice(acc, (0, 32 * half), (64, 32 * half + 32)))
                if fence:
                    x.fence_async()
                x.tma_store(c, (0, 32 * half), out)
                x.tma_commit()
                x.tma_wait(read=True)
    return program(body)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_pipelined_product_is_right_in_any_order(seed):
    a, c = run(product(steps=3), seed)
    wide = a.astype(np.float64)
    assert np.abs(c - 3 * wide @ wide.T).max() < 1e-3


@pytest.mark.parametrize("left_out, text_", [
    ("wait", "mma_async touches memory that tma_load may still be writing"),
    ("fence", "tma_store takes what threads wrote without fence_async"),
    ("release_late", "overwrites memory that mma_async may still be reading"),
    ("wait_product", "uses an accumulator before mma_wait returned it"),
])
def test_what_is_left_out_of_the_protocol_is_found(left_out, text_):
    with pytest.raises(TileError, match=text_) as e:
        run(product(**{left_out: False}))
    assert "test_explicit.py" in str(e.value)


def test_reading_before_the_copys_barrier_is_a_race_even_when_the_data_are_there():
    def body(a, c):
        s = x.alloc_tiles(ROWS, 64, dtype=bf16)
        full, other = x.mbarriers(1), x.mbarriers(1)
        with x.role(threads=1):
            full.expect(0, s.nbytes)
            x.tma_load(s, a, (0, 0), full[0])
            other.arrive(0)
        with x.role():
            other.wait(0, 0)  # says that the copy was started, not that it came
            dsl.store(c, (0, 0), s.load())
    with pytest.raises(TileError, match="race: accesses memory that tma_load may still be writing"):
        run(program(body))


def test_named_barriers_hand_on_what_others_wrote():
    def body(a, c):
        s = x.alloc_tiles(ROWS, 64, dtype=f32)
        with x.role(groups=2) as g:
            if g == 0:
                s.store(dsl.load(a, (0, 0), (64, 64)).to(f32))
            x.barrier_sync(1, 256)
            if g == 1:
                dsl.store(c, (0, 0), s.load() * 2.0)
    a, c = run(program(body))
    assert np.array_equal(c, 2 * a.astype(np.float32))
    with pytest.raises(TileError, match=r"reads %alloc before it is written|race"):
        run(program(_without_meeting))


def _without_meeting(a, c):
    s = x.alloc_tiles(ROWS, 64, dtype=f32)
    with x.role():
        s.store(dsl.load(a, (0, 0), (64, 64)).to(f32))
    with x.role():
        dsl.store(c, (0, 0), s.load() * 2.0)


def test_a_wait_for_what_never_comes_names_who_waits():
    def body(a, c):
        full = x.mbarriers(1)
        with x.role():
            full.wait(0, 0)
            dsl.store(c, (0, 0), dsl.load(a, (0, 0), (64, 64)).to(f32))
    with pytest.raises(TileError, match=r"nobody can go on; waiting are: mbarrier_wait \(.*test_explicit.py:\d+\), warp group 0"):
        run(program(body))


def test_multicast_and_remote_release_in_a_cluster():
    def body(a, c):
        s = x.alloc_tiles(ROWS, 64, dtype=bf16)
        full = x.mbarriers(1)
        rank = x.cluster(2)
        with x.role(threads=1):
            full.expect(0, s.nbytes)
            half = rank * 32
            x.tma_load(s[half:half + 32], a, (half, 0), full[0], multicast=3)
        with x.role():
            full.wait(0, 0)
            dsl.store(c, (rank * 64, 0), s.load().to(f32))
    a, c = run(program(body, ((64, 64), (128, 64)), grid=(2,)))
    assert np.array_equal(c, np.concatenate([a, a]).astype(np.float32))


def test_copies_of_threads_are_groups():
    def body(a, c):
        s = x.alloc_tiles(2, ROWS, 64, dtype=bf16)
        with x.role():
            for i in (0, 1):
                x.copy_async(s[i], a, (0, 0))
                x.copy_commit()
            x.copy_wait(pending=1)
            dsl.store(c, (0, 0), s[0].load().to(f32))
            x.copy_wait()
            dsl.store(c, (64, 0), s[1].load().to(f32))
    a, c = run(program(body, ((64, 64), (128, 64))))
    assert np.array_equal(c[64:], a.astype(np.float32))


def test_text_of_a_program_parses_back():
    fn = product()
    again = text.parse_function(str(fn))
    assert str(again) == str(fn)
    tile.verify(again)


def test_approximate_functions_mean_the_functions():
    def body(a, c):
        dsl.store(c, (0, 0), dsl.exp2_approx(dsl.load(a, (0, 0), (64, 64)).to(f32)))
    a, c = run(program(body))
    assert np.allclose(c, np.exp2(a.astype(np.float32)), rtol=1e-6)


@pytest.mark.parametrize("body, text_", [
    (lambda a, c: x.alloc_tiles(4, 512, 128, dtype=bf16), r"takes 524288 bytes of shared memory; a block of an H100 has 232448"),
    (lambda a, c: x.alloc_tiles(64, 48, dtype=bf16), "a swizzle of 128 bytes takes matrices whose rows are multiples of it"),
    (lambda a, c: x.alloc_tiles(64, 64, dtype=bf16, swizzle=100), "there is no swizzle of 100 bytes"),
    (lambda a, c: x.wgmma(x.uninitialized((128, 64)), x.alloc_tiles(128, 64, dtype=bf16), x.alloc_tiles(64, 64, dtype=bf16)),
     "A warp group multiplies 64 rows"),
    (lambda a, c: x.wgmma(x.uninitialized((64, 64)), x.alloc_tiles(64, 64, dtype=f32), x.alloc_tiles(64, 64, dtype=f32)),
     "the matrix unit multiplies bf16 or f16 into f32, not f32"),
    (lambda a, c: x.tma_load(x.alloc_tiles(2, 64, 64, dtype=bf16), a, (0, 0), x.mbarriers(1)[0]),
     "tma_load takes a matrix in shared memory"),
    (lambda a, c: x.tma_load(x.alloc_tiles(64, 64, dtype=bf16), a, (0,), x.mbarriers(1)[0]), "takes 2 offsets, got 1"),
    (lambda a, c: x.cluster(3), "a cluster has 1, 2, 4 or 8 blocks"),
])
def test_misuse_is_told(body, text_):
    with pytest.raises(KernelError) as e:
        program(body)
    assert text_.replace("\\", "") in str(e.value)


def test_values_do_not_leave_their_role():
    def body(a, c):
        with x.role():
            t = dsl.load(a, (0, 0), (64, 64))
        with x.role():
            dsl.store(c, (0, 0), t.to(f32))
    with pytest.raises(KernelError, match="not defined here"):
        program(body)


def test_bad_roles_are_refused():
    fn = product()
    op = next(o for o in fn.walk() if o.name == "roles")
    op.attrs["registers"] = (41, 232)
    with pytest.raises(GrammarError, match="a register budget is a multiple of 8 from 24 to 256"):
        tile.verify(fn)


def test_user_kernels_reach_the_level():
    @ts.kernel
    def twice(A: ts.Tile["M", "N", ts.bf16], C: ts.Tile["M", "N", ts.bf16]):
        box = ts.tile.alloc_tiles(64, 64, dtype=ts.bf16)
        full = ts.tile.mbarriers(1)
        for m in ts.tile.range(A.shape[0], step=64):
            with ts.tile.role(threads=1):
                full.expect(0, box.nbytes)
                ts.tile.tma_load(box, A, (m, 0), full[0])
            with ts.tile.role():
                full.wait(0, 0)
                box.store(box.load() * 2.0)
                ts.tile.fence_async()
                ts.tile.tma_store(C, (m, 0), box)
                ts.tile.tma_commit()
                ts.tile.tma_wait()

    a = np.random.default_rng(0).standard_normal((100, 64)).astype(bf16.np)
    c = np.zeros_like(a)
    built = twice.build({"A": ts.Tensor(a).type, "C": ts.Tensor(c).type})
    interpret_tile.interpret(built.function, [a, c])
    assert np.array_equal(c.astype(np.float32), 2 * a.astype(np.float32))


# -- texts -------------------------------------------------------------------------------------------------------------------
def told(body, dtype=bf16):
    """What building or interpreting a program says, up to the stack trace."""
    with pytest.raises((KernelError, TileError)) as e:
        run(program(body, dtype=dtype))
    return str(e.value).partition("\n\nStack trace:")[0]


def marked(text_):
    """The line of the kernel that an error marks."""
    (line,) = [row for row in text_.splitlines() if "← Error here" in row]
    return line.partition("|")[2].partition("#")[0].strip()


def test_text_of_a_race():
    def body(a, c):
        s = x.alloc_tiles(ROWS, 64, dtype=bf16)
        x.copy_async(s, a, (0, 0))
        x.copy_commit()
        dsl.store(c, (0, 0), s.load().to(f32))

    said = told(body)
    assert said.startswith("Error: Tile program error in function 'body' at line ")
    assert "p: load: race: accesses memory that copy_async may still be writing, in %alloc (at " in said
    assert marked(said) == "dsl.store(c, (0, 0), s.load().to(f32))" and "~~~" in said
    assert said.endswith("Possible fixes:\n1. wait for the copy: tile.wait_async(), tile.copy_wait() or tile.barrier()")


@pytest.mark.parametrize("how", ["threads", "copies"])
def test_text_of_a_missing_fence_before_the_matrix_unit(how):
    """Neither what threads store nor what their copies bring is the matrix unit's to read before a fence; with one it is."""
    def body(a, c, fenced=False):
        s = x.alloc_tiles(ROWS, 64, dtype=bf16)
        with x.role():
            if how == "threads":
                s.store(dsl.load(a, (0, 0), (64, 64)))
            else:
                x.copy_async(s, a, (0, 0))
                x.copy_commit()
                x.copy_wait()
            if fenced:
                x.fence_async()
            x.barrier_sync(1, 128)
            acc = x.wgmma(x.uninitialized((64, 64)), s, s.T, accumulate=False)
            x.wgmma_commit()
            dsl.store(c, (0, 0), x.wgmma_wait(acc))

    said = told(body)
    assert "p: mma_async: race: mma_async takes what threads wrote without fence_async, in %alloc (at " in said
    assert marked(said) == "acc = x.wgmma(x.uninitialized((64, 64)), s, s.T, accumulate=False)"
    assert said.endswith("Possible fixes:\n1. tile.fence_async() after the writes, before others are told of them")

    def safe(a, c):
        body(a, c, True)

    a, c = run(program(safe))
    wide = a.astype(np.float64)
    assert np.abs(c - wide @ wide.T).max() < 1e-3


@pytest.mark.parametrize("misuse, message, fix", [
    (lambda b: b.wait(2, 0), "wait: there is no barrier 2; there are 2", "Expected: 0 … 1"),
    (lambda b: b.wait(0, 2), "wait: a phase has parity 0 or 1, not 2", "1. of the k-th phase: k & 1"),
    (lambda b: b.expect(0, 0), "expect announces a number of bytes, not 0", "1. the size of what is copied: x[stage].nbytes"),
    (lambda b: b.wait(0, 0), "p: nobody can go on; waiting are: mbarrier_wait", "every phase needs its arrivals and bytes"),
    (lambda b: x.barrier_sync(1, 100), "barrier_sync: whole warps come to a barrier, not 100 threads", "Expected: a multiple of 32"),
    (lambda b: x.barrier_sync(16, 128), "barrier_sync: there is no named barrier 16", "Expected: 0 … 15"),
    (lambda b: x.mbarriers(0), "mbarriers: n is a positive number, not 0", "")])
def test_texts_of_barriers_misused(misuse, message, fix):
    def body(a, c):
        b = x.mbarriers(2)
        with x.role():
            misuse(b)

    said = told(body)
    assert message in said and fix in said and "(lambda b: " in marked(said)


def test_text_of_more_arrivals_than_a_phase_takes():
    def body(a, c):
        b = x.mbarriers(1, arrivals=2)
        with x.role():
            b.expect(0, 64)
            b.arrive(0)
            b.arrive(0)

    said = told(body)
    assert "p: mbarrier_arrive: more than 2 arrivals in one phase, in block (0,)" in said and marked(said) == "b.arrive(0)"
    assert "1. make the barrier for as many: tile.mbarriers(n, arrivals=…)\n2. wait for the phase before the next arrival" in said


def test_text_of_shapes_that_do_not_divide():
    def body(a, c):
        x.alloc_tiles(64, 48, dtype=bf16)

    said = told(body)
    assert "a swizzle of 128 bytes takes matrices whose rows are multiples of it\n    Received: bf16[64, 48]" in said
    assert marked(said) == "x.alloc_tiles(64, 48, dtype=bf16)"
    assert said.endswith("Possible fixes:\n1. make the columns a multiple of 64\n2. swizzle=0")


def test_text_of_a_dtype_that_the_matrix_unit_lacks():
    def body(a, c):
        t = x.alloc_tiles(64, 64, dtype=f32)
        x.wgmma(x.uninitialized((64, 64)), t, t)

    said = told(body)
    assert "wgmma: the matrix unit multiplies bf16 or f16 into f32, not f32 by f32 into f32" in said
    assert marked(said) == "x.wgmma(x.uninitialized((64, 64)), t, t)"
