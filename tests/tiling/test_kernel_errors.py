"""Errors of kernels: each says what is wrong, at the kernel's line."""
# ruff: noqa: F821  (names of sizes in annotations)

import linecache
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.errors import ArgumentError, DTypeError, KernelError, ShapeError, UnsupportedError
from tessera.ir import interpret_tile
from tessera.machine import INTEL_CPU
from tessera.runtime.build import lower_launch, one_launch
from tessera.tiling import frontend
from tessera.tiling.frontend import Tile, kernel
from tessera.types.dtypes import bf16, bool_, f32, int8, int32


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch):
    monkeypatch.setattr(frontend, "launch", lambda fn, buffers, sizes: interpret_tile.run(fn, buffers, sizes))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def failing(k, *args, error=KernelError, **kwargs):
    with pytest.raises(error) as info:
        k(*args, **kwargs)
    return info.value


def line(e):
    """The source line at which the error points."""
    return linecache.getline(e.where.file, e.where.line).strip()


def underlined(e):
    """What the error's text underlines."""
    rows = str(e).splitlines()
    at = next(i for i, r in enumerate(rows) if "~" in r and set(r.strip(" |")) == {"~"})
    return rows[at - 1][rows[at].index("~"):rows[at].rindex("~") + 1]


def test_a_tile_shape_computed_in_the_kernel():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        for i in tile.range(X.shape[0], step=4):
            tile.store(O[i:i + 4], tile.zeros((i,), f32))

    e = failing(k, zeros(8), zeros(8))
    assert "a tile shape must be static: extent 0 is a value computed in the kernel" in str(e)
    assert line(e) == "tile.store(O[i:i + 4], tile.zeros((i,), f32))"
    assert underlined(e) == "tile.zeros((i,), f32)"


def test_a_window_whose_extent_is_not_static():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        for i in tile.range(X.shape[0], step=4):
            tile.store(O[i:i + 4], X[i:2 * i])

    e = failing(k, zeros(8), zeros(8))
    assert "the extent of a window must be static" in str(e) and underlined(e) == "X[i:2 * i]"


def test_mismatched_tile_shapes():
    @kernel
    def k(X: Tile["M", "N", f32], O: Tile["M", "N", f32]):
        a = tile.load(X, (0, 0), shape=(4, 8))
        tile.store(O[0:4, 0:8], a + tile.load(X, (0, 0), shape=(4, 6)))

    e = failing(k, zeros(8, 8), zeros(8, 8))
    assert "tile shapes do not fit: tile<f32[4, 8]> and tile<f32[4, 6]> differ in dimension 1: 8 vs 6" in str(e)
    assert underlined(e) == "a + tile.load(X, (0, 0), shape=(4, 6))"


def test_products_that_do_not_fit():
    @kernel
    def k(A: Tile["M", "K", f32], B: Tile["N", "L", f32], O: Tile["M", "L", f32]):
        tile.store(O[0:4, 0:8], tile.dot(A[0:4, 0:6], B[0:5, 0:8]))

    e = failing(k, zeros(4, 6), zeros(5, 8), zeros(4, 8))
    assert "inner extents differ, 6 vs 5" in str(e) and underlined(e) == "tile.dot(A[0:4, 0:6], B[0:5, 0:8])"


@pytest.mark.parametrize("dtype, message", [(bool_, "bool has no dot"), (int8, None)])
def test_dtypes_of_products(dtype, message):
    @kernel
    def k(A: Tile["M", "M", dtype], O: Tile["M", "M", int32]):
        tile.store(O[0:4, 0:4], tile.dot(A[0:4, 0:4], A[0:4, 0:4], tile.zeros((4, 4), int32)))

    x = zeros(4, 4, dtype=dtype.np)
    if message is None:
        k(x, zeros(4, 4, dtype=np.int32))
    else:
        e = failing(k, x, zeros(4, 4, dtype=np.int32))
        assert message in str(e) and "tile.dot(" in line(e)


def test_dot_into_a_narrower_accumulator():
    @kernel
    def k(A: Tile["M", "M", f32], O: Tile["M", "M", bf16]):
        tile.store(O[0:4, 0:4], tile.dot(A[0:4, 0:4], A[0:4, 0:4], tile.zeros((4, 4), bf16)))

    e = failing(k, zeros(4, 4), zeros(4, 4, dtype=ml_dtypes.bfloat16))
    assert "f32 does not convert exactly to the accumulator's dtype bf16" in str(e)


def test_store_of_a_wrong_shape():
    @kernel
    def k(X: Tile["M", "N", f32], O: Tile["M", "N", f32]):
        tile.store(O[0:4, 0:8], tile.load(X, (0, 0), shape=(4, 6)))

    e = failing(k, zeros(8, 8), zeros(8, 8))
    assert "a tile of shape [4, 6] does not match the window [4, 8]" in str(e)
    assert "Expected: a tile of shape [4, 8]" in str(e) and "tile.store(O[0:4, 0:8]" in line(e)


def test_store_of_a_wrong_rank():
    @kernel
    def k(X: Tile["M", "N", f32], O: Tile["M", "N", f32]):
        tile.store(O, tile.sum(tile.load(X, (0, 0), shape=(4, 6)), axis=0))

    assert "cannot store a tile of rank 1" in str(failing(k, zeros(8, 8), zeros(8, 8)))


def forever(x, n):
    return x if n == 0 else forever(x, n - 1)


def test_recursion():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, forever(X + 0, 3))

    e = failing(k, zeros(8), zeros(8))
    assert "recursion: 'forever' calls itself" in str(e)
    assert "forever(x, n - 1)" in line(e)


def test_a_kernel_that_calls_itself():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        k(X, O)

    assert "recursion: 'k' calls itself" in str(failing(k, zeros(8), zeros(8)))


def test_unknown_operations_are_suggested():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, tile.maximun(X, 0))

    e = failing(k, zeros(8), zeros(8))
    assert "tile has no operation 'maximun'; did you mean 'maximum'" in str(e)
    assert underlined(e) == "tile.maximun"
    with pytest.raises(AttributeError):
        tile.nonsense  # noqa: B018
    assert not hasattr(tile, "nonsense") and "online_softmax" in dir(tile)


@pytest.mark.parametrize("construct", ["try", "with", "class", "import", "yield", "global"])
def test_unsupported_constructs(construct):
    @kernel
    def with_try(X: Tile["N", f32], O: Tile["N", f32]):
        try:
            tile.store(O, X)
        finally:
            pass

    @kernel
    def with_with(X: Tile["N", f32], O: Tile["N", f32]):
        with open("file"):
            tile.store(O, X)

    @kernel
    def with_class(X: Tile["N", f32], O: Tile["N", f32]):
        class Local:
            pass
        tile.store(O, X)

    @kernel
    def with_import(X: Tile["N", f32], O: Tile["N", f32]):
        import math
        tile.store(O, X * math.pi)

    @kernel
    def with_yield(X: Tile["N", f32], O: Tile["N", f32]):
        yield X

    @kernel
    def with_global(X: Tile["N", f32], O: Tile["N", f32]):
        global counter
        counter = 1

    e = failing(locals()[f"with_{construct}"], zeros(8), zeros(8))
    assert f"`{construct}` is not supported in a kernel" in str(e)
    assert line(e).startswith(construct)


def test_a_kernel_that_writes_nothing_or_returns_a_tile():
    @kernel
    def nothing(X: Tile["N", f32]):
        X + 1

    @kernel
    def returns(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, X)
        return X + 1

    assert "writes nothing" in str(failing(nothing, zeros(8)))
    assert "returns a TileValue; kernels write their results" in str(failing(returns, zeros(8), zeros(8)))


def test_programs_that_would_write_the_same_place():
    @kernel
    def k(X: Tile["M", "N", f32], O: Tile["N", f32]):
        tile.store(O, tile.sum(tile.load(X, shape=(4, 64)), axis=0))

    e = failing(k, zeros(8, 8), zeros(8))
    assert "programs at different positions along M write the same place" in str(e)
    assert line(e).startswith("tile.store(O")


def test_a_window_of_two_extents_along_one_axis():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, tile.load(X, shape=(16,)) + 0)
        tile.store(O, tile.load(X, shape=(32,)) + 0)

    assert "the axis N is walked in windows of 16 and of 32" in str(failing(k, zeros(8), zeros(8)))


def test_tiles_that_follow_different_axes():
    @kernel
    def stored(X: Tile["M", "N", f32], O: Tile["N", "M", f32]):
        tile.store(O, tile.load(X, shape=(16, 16)))

    @kernel
    def added(X: Tile["M", "N", f32], Y: Tile["N", "M", f32], O: Tile["M", "N", f32]):
        tile.store(O, tile.load(X, shape=(16, 16)) + tile.load(Y, shape=(16, 16)))

    e = failing(stored, zeros(32, 48), zeros(48, 32))
    assert "axis 0 of the tile follows M, and of 'O' it follows N" in str(e) and line(e).startswith("tile.store(O")
    assert "along axis 0 one operand follows M, the other N" in str(failing(added, zeros(32, 48), zeros(48, 32), zeros(32, 48)))


def test_registers_and_shared_memory():
    @kernel
    def unfilled(O: Tile["N", f32]):
        tile.store(O, tile.alloc_register(4, dtype=f32))

    @kernel
    def misfit(O: Tile["N", f32]):
        r = tile.alloc_register(4, dtype=f32)
        tile.copy(tile.zeros((5,), f32), r)

    @kernel
    def no_dtype(O: Tile["N", f32]):
        tile.alloc_shared(4)

    @kernel
    def unknown(O: Tile["N", f32]):
        tile.alloc_shared(4, dtype=f32, swizle="xor")

    assert "is read before it is filled" in str(failing(unfilled, zeros(8)))
    assert "a tile of shape [5] does not fit a register of shape [4]" in str(failing(misfit, zeros(8)))
    assert "alloc_shared needs a dtype" in str(failing(no_dtype, zeros(8)))
    assert "alloc_shared has no argument 'swizle'; did you mean 'swizzle'" in str(failing(unknown, zeros(8)))


def test_a_ragged_edge_in_a_shape_that_cannot_follow_it():
    @kernel
    def k(X: Tile["N", f32], O: Tile["N", f32]):
        for i in tile.range(X.shape[0], step=8):
            tile.store(O[i:i + 8], tile.reshape(tile.reshape(X[i:i + 8], (2, 4)), (8,)))

    e = failing(k, zeros(9), zeros(9))
    assert "a tile with a ragged edge cannot be reshaped from [8] to [2, 4]" in str(e)
    assert "1. make them data, by saying what they hold: tile.load(X, …, fill=0)" in str(e)
    assert underlined(e) == "tile.reshape(X[i:i + 8], (2, 4))"


def test_a_carried_value_of_another_dtype():
    @kernel
    def k(X: Tile["N", int32], O: Tile["N", int32]):
        n = tile.zeros((), int32)
        for i in tile.range(X.shape[0], step=8, parallel=False):
            n = n + tile.sum(X[i:i + 8])
        tile.store(O[0], n)

    e = failing(k, zeros(9, dtype=np.int32), zeros(9, dtype=np.int32))
    assert "n changes its type in the loop: from int32 to int64" in str(e)
    assert "1. convert it where it is set: n = (…).to(ts.int32)" in str(e)


def test_atomics():
    @kernel
    def by_number(X: Tile["M", "N", int32]):
        tile.atomic_add(X, tile.arange(4), 1)

    @kernel
    def misfit(X: Tile["M", "N", int32]):
        tile.atomic_add(X[0:4, 0:4], tile.zeros((4, 5), int32))

    @kernel
    def floats(X: Tile["M", "N", f32]):
        tile.atomic_add(X[0:4, 0:4], tile.zeros((4, 4), f32))

    x = zeros(4, 4, dtype=np.int32)
    e = failing(by_number, x)
    assert "atomic_add takes a parameter with one axis inside the kernel, or shared memory with one, not <X: int32[M, N]>" in str(e)
    assert "a window with a tile of its shape: atomic_add(X[i:i + 16, j:j + 16], tile)" in str(e)
    assert "a tile of shape [4, 5] does not match the window [4, 4]" in str(failing(misfit, x))
    e = failing(floats, zeros(4, 4))
    assert "atomics work on integers of 32 or 64 bits, not on f32" in str(e) and underlined(e).startswith("tile.atomic_add(X[0:4, 0:4]")


def test_what_only_warp_groups_have():
    @kernel
    def roles(X: Tile["N", f32], O: Tile["N", f32]):
        with tile.role(groups=1):
            tile.store(O[0:64], X[0:64])

    @kernel
    def clusters(X: Tile["N", f32], O: Tile["N", f32]):
        tile.cluster(2)
        tile.cluster_sync()
        tile.store(O[0:64], X[0:64])

    @kernel
    def waits(X: Tile["M", "N", bf16], O: Tile["M", "N", f32]):
        tile.store(O[0:64, 0:64], tile.wgmma_wait(tile.zeros((64, 64), f32), 1))

    fn = roles.build({n: ts.ones(64).type for n in "XO"}).function
    sched = one_launch(fn)
    with pytest.raises(UnsupportedError) as info:
        lower_launch(sched, sched.body.ops[0], INTEL_CPU, ("N",))
    e = info.value
    assert "'roles' is written for warp groups, which Intel OpenCL on a CPU does not have" in str(e)
    assert "shared memory, fragments, async_copy and tile.barrier() are everyone's" in str(e)
    assert underlined(e) == "with tile.role(groups=1):"
    e = failing(clusters, zeros(64), zeros(64), error=interpret_tile.TileError)
    assert "the grid has 1 blocks, which do not form clusters of 2" in str(e) and underlined(e) == "tile.cluster_sync()"
    e = failing(waits, zeros(64, 64, dtype=bf16.np), zeros(64, 64))
    assert "1. acc = tile.wgmma_wait(acc, pending=1)" in str(e)


def test_arguments():
    @kernel
    def k(X: Tile["M", "K", f32], Y: Tile["K", "N", f32], O: Tile["M", "3*N", f32], scale: float = 1.0):
        tile.store(O, tile.load(O) * scale)

    good = zeros(2, 3), zeros(3, 4), zeros(2, 12)
    k(*good)
    e = failing(k, zeros(2, 3), zeros(5, 4), zeros(2, 12), error=ShapeError)
    assert "'Y' has size 5 in dimension 0, expected K = 3" in str(e)
    e = failing(k, zeros(2, 3), zeros(3, 4), zeros(2, 8), error=ShapeError)
    assert "'O' has size 8 in dimension 1, expected 3*N = 12" in str(e)
    e = failing(k, zeros(2, 3, dtype=np.float64), *good[1:], error=DTypeError)
    assert "takes 'X' as Tile[M, K, f32], got f64[2, 3]" in str(e)
    assert "of rank 1" in str(failing(k, zeros(2), *good[1:], error=ShapeError))
    assert "missing a required argument: 'O'" in str(failing(k, *good[:2]))
    assert "takes 'O' as Tile[M, 3*N, f32], not a float" in str(failing(k, *good[:2], 1.0))
    assert "unexpected keyword argument 'scal'; did you mean 'scale'" in str(failing(k, *good, scal=2.0))
    assert "unexpected keyword argument 'Oo'; did you mean 'O'" in str(failing(k, *good[:2], Oo=good[2]))


def test_numpy_in_a_kernel():
    @kernel
    def scaled(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, np.float32(2) * tile.load(X) - np.int64(1))

    @kernel
    def with_ufunc(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, np.exp(tile.load(X)))

    @kernel
    def with_op(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, ts.exp(tile.load(X) + 0))

    x, o = np.arange(5, dtype=np.float32), zeros(5)
    scaled(x, o)
    np.testing.assert_array_equal(o, 2 * x - 1)
    e = str(failing(with_ufunc, x, o))
    assert "np.exp does not work on tiles" in e and "1. use tile.exp" in e and "← Error here" in e
    e = str(failing(with_op, x, o, error=DTypeError))
    assert "a tile is not a tensor" in e and "tile.exp" in e


def test_declarations():
    def f(X: Tile["N", f32]):
        tile.store(X, X)

    with pytest.raises(ArgumentError, match="did you mean 'tile_m'"):
        kernel(f, tilem=4)
    with pytest.raises(ArgumentError, match="tile_m is a whole number of at least 1"):
        kernel(f, tile_m=0)
    with pytest.raises(KernelError, match="a plain `def` function"):
        kernel(42)
    with pytest.raises(KernelError, match="a plain `def` function"):
        kernel(lambda X: X)(zeros(3))

    @kernel
    def star(*tensors):
        pass

    assert "takes \\*tensors" in failing(star, zeros(3)).message.replace("*", "\\*")


def test_tile_operations_outside_a_kernel():
    with pytest.raises(KernelError, match="work only inside a kernel"):
        tile.zeros((4,), f32)


def test_source_that_is_not_available():
    code = ("import numpy as np\nfrom tessera.tiling import kernel\nfrom tessera import tile\n"
            "try:\n  kernel(eval('lambda: 0') and dict(a=None) or None)\nexcept Exception as e: pass\n"
            "ns = {'tile': tile}\nexec('def k(O):\\n  tile.store(O, 1.0)', ns)\n"
            "try:\n  kernel(ns['k'])(np.zeros(3, np.float32))\nexcept Exception as e: print(type(e).__name__, e.message)\n")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "KernelError the source of k is not available" in out.stdout
