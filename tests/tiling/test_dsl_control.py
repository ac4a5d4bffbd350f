"""``@tile_function``: Python control flow becomes ops exactly where it depends on traced values."""

import linecache

import numpy as np
import pytest

from tessera.errors import KernelError
from tessera.ir.core import BufferType
from tessera.ir.interpret_tile import run
from tessera.ir.text import parse_function
from tessera.tiling import dsl as tile
from tessera.types import dtypes as dt
from tessera.types.dims import sym

N = sym("N")


def build(body, outputs=1, dtype=dt.int64, *args):
    """The Tile function of ``body(x, o, n, *args)`` over int64 x[N] and o[outputs]."""
    buffers = [("x", BufferType(dt.int64, (N,))), ("o", BufferType(dtype, (outputs,)))]
    return tile.build(tile.TileProgram("k", buffers, ("N",)), body, N, *args)


def call(body, x, outputs=1, dtype=dt.int64, *args):
    """What ``body`` stores, run from the text of its program."""
    fn = parse_function(str(build(body, outputs, dtype, *args)))
    o = np.zeros(outputs, dtype.np)
    run(fn, [np.asarray(x, np.int64), o], {"N": len(x)})
    return o.tolist()


def ops(fn, name):
    return [op for op in fn.walk() if op.name == name]


# -- for ---------------------------------------------------------------------------------------------------------------
@tile.tile_function
def total(x, o, n):
    acc = 0
    for i in tile.range(n):
        acc += tile.load(x, (i,))
    tile.store(o, (0,), acc)


@pytest.mark.parametrize("n", [1, 3, 14])
def test_a_carried_number(n):
    assert call(total, range(n)) == [sum(range(n))]


def test_a_loop_is_one_op_whatever_its_length():
    fn = build(total)
    loop, = ops(fn, "for")
    assert len(loop.results) == 1 and len(ops(fn, "load")) == 1


def test_only_variables_that_live_on_are_carried():
    @tile.tile_function
    def body(x, o, n):
        acc, unused, scratch = 0, 5, 1
        for i in tile.range(n):
            scratch = tile.load(x, (i,))  # overwritten before it is read: not carried
            unused = unused + scratch  # read in the next iteration: carried
            acc = acc + scratch
        tile.store(o, (0,), acc)

    fn = build(body)
    loop, = ops(fn, "for")
    assert len(loop.results) == 2


def test_a_variable_may_change_its_type_between_loops():
    @tile.tile_function
    def body(x, o, n):
        out = 0
        for i in tile.range(n):
            t = tile.full((4,), i)
            out = out + tile.sum(t)
        for i in tile.range(n):
            t = i * 2
            out = out + t
        tile.store(o, (0,), out)

    assert call(body, [0] * 3) == [4 * 3 + 2 * 3]


def test_nested_loops_carry_through_both():
    @tile.tile_function
    def body(x, o, n):
        acc, rows = 0, 0
        for i in tile.range(n):
            for j in tile.range(0, i + 1, 2):
                acc = acc + i * 10 + j
            rows += 1
        tile.store(o, (0,), acc)
        tile.store(o, (1,), rows)

    expected = sum(i * 10 + j for i in range(5) for j in range(0, i + 1, 2))
    assert call(body, [0] * 5, 2) == [expected, 5]


def test_loop_invariant_variables_are_not_carried():
    @tile.tile_function
    def body(x, o, n):
        acc, base = 0, tile.load(x, (0,))
        for _ in tile.range(n):
            acc = acc + base
            base = base + 0
        tile.store(o, (0,), acc + base)

    fn = build(body)
    loop, = ops(fn, "for")
    assert len(loop.results) == 1
    assert call(body, [7, 0, 0]) == [28]


def test_static_loops_unroll():
    @tile.tile_function
    def body(x, o, n):
        acc = tile.load(x, (0,))
        for k in range(3):
            acc = acc + k
        for k in tile.static_range(2):
            acc = acc * (k + 2)
        for name in ["a", "bc"]:
            acc = acc + len(name)
        tile.store(o, (0,), acc)

    fn = build(body)
    assert not ops(fn, "for")
    assert call(body, [4]) == [(4 + 3) * 6 + 3]


def test_lists_and_dicts_of_tiles_are_carried():
    @tile.tile_function
    def body(x, o, n):
        acc = [tile.constant(0), tile.constant(100)]
        more = {"max": tile.constant(-1), "pair": (tile.constant(1), 5)}
        for i in tile.range(n):
            v = tile.load(x, (i,))
            for k in range(2):
                acc[k] = acc[k] + v * (k + 1)
            more["max"] = tile.maximum(more["max"], v)
        tile.store(o, (0,), acc[0])
        tile.store(o, (1,), acc[1])
        tile.store(o, (2,), more["max"] + more["pair"][1])

    assert call(body, [3, 9, 2], 3) == [14, 128, 14]


def test_a_number_takes_the_type_it_has_at_the_end_of_the_body():
    @tile.tile_function
    def body(x, o, n):
        acc = 0.0
        for i in tile.range(n):
            acc = acc + tile.full((4,), 0.5, dt.f64) * i
        tile.store(o, (0,), tile.sum(acc))

    assert call(body, [0] * 4, 1, dt.f64) == [4 * 0.5 * 6]


def test_closures_see_the_current_value():
    @tile.tile_function
    def body(x, o, n):
        acc = tile.constant(1)

        def grow(by):
            return acc * by

        for i in tile.range(n):
            acc = grow(2) + i
        tile.store(o, (0,), acc)

    value = 1
    for i in range(5):
        value = value * 2 + i
    assert call(body, [0] * 5) == [value]


def test_bounds_and_steps_may_be_traced():
    @tile.tile_function
    def body(x, o, n):
        lo, hi, step = tile.load(x, (0,)), tile.load(x, (1,)), tile.load(x, (2,))
        count = 0
        for i in tile.range(lo, hi, step):
            count = count + i
        tile.store(o, (0,), count)

    assert call(body, [2, 17, 5]) == [2 + 7 + 12]


# -- while -------------------------------------------------------------------------------------------------------------
def test_while_on_traced_values():
    @tile.tile_function
    def gcd(x, o, n):
        a, b = tile.load(x, (0,)), tile.load(x, (1,))
        while b != 0:
            a, b = b, a % b
        tile.store(o, (0,), a)

    assert call(gcd, [84, 36]) == [12]
    assert len(ops(build(gcd), "while")) == 1


def test_while_with_a_compound_condition():
    @tile.tile_function
    def body(x, o, n):
        i = 0
        while i < n and tile.load(x, (tile.minimum(i, 3),)) != 5 and not i > 10:
            i += 1
        tile.store(o, (0,), i)

    assert call(body, [1, 2, 5, 3]) == [2]
    assert call(body, [1, 2, 4, 3]) == [4]


def test_while_on_static_values_is_python():
    @tile.tile_function
    def body(x, o, n):
        k, acc = 1, tile.load(x, (0,))
        while k < 20:
            acc = acc + k
            k *= 3
        tile.store(o, (0,), acc)

    assert not ops(build(body), "while")
    assert call(body, [5]) == [5 + 1 + 3 + 9]


def test_while_inside_for_with_if():
    @tile.tile_function
    def collatz(x, o, n):
        longest = 0
        for i in tile.range(n):
            v, steps = tile.load(x, (i,)), 0
            while v > 1:
                if v % 2 == 0:
                    v = v // 2
                else:
                    v = 3 * v + 1
                steps += 1
            if steps > longest:
                longest = steps
        tile.store(o, (0,), longest)

    def python(v):
        steps = 0
        while v > 1:
            v, steps = (v // 2 if v % 2 == 0 else 3 * v + 1), steps + 1
        return steps

    assert call(collatz, [6, 7, 27, 1]) == [max(map(python, [6, 7, 27, 1]))]


# -- if ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("v", [-3, 0, 4])
def test_if_elif_else(v):
    @tile.tile_function
    def sign(x, o, n):
        t = tile.load(x, (0,))
        if t > 0:
            s = 1
        elif t < 0:
            s = -1
        else:
            s = t
        tile.store(o, (0,), s)

    assert call(sign, [v]) == [(v > 0) - (v < 0)]


def test_if_on_static_values_is_python():
    @tile.tile_function
    def body(x, o, n, fast):
        if fast:
            y = tile.load(x, (0,))
        else:
            y = "never built"
        tile.store(o, (0,), y if fast else 0)

    fn = build(body, 1, dt.int64, True)
    assert not ops(fn, "if")


def test_stores_under_a_condition():
    @tile.tile_function
    def body(x, o, n):
        for i in tile.range(n):
            if tile.load(x, (i,)) > 2:
                tile.store(o, (i,), i)

    assert call(body, [1, 3, 0, 9], 4) == [0, 1, 0, 3]


def test_conditional_expressions_and_chained_comparisons():
    @tile.tile_function
    def body(x, o, n):
        for i in tile.range(n):
            v = tile.load(x, (i,))
            tile.store(o, (i,), v * 10 if 2 <= v < 5 else -v)

    assert call(body, [1, 2, 4, 5], 4) == [-1, 20, 40, -5]


def test_or_short_circuits_only_static_values():
    @tile.tile_function
    def body(x, o, n, flag):
        t = tile.load(x, (0,))
        if flag or t > 100:
            tile.store(o, (0,), 1)
        if (flag and t > 3) or t == 2:
            tile.store(o, (1,), 1)

    fn = build(body, 2, dt.int64, True)
    assert len(ops(fn, "if")) == 1
    assert call(body, [2], 2, dt.int64, True) == [1, 1]
    assert call(body, [2], 2, dt.int64, False) == [0, 1]
    assert call(body, [4], 2, dt.int64, False) == [0, 0]


def test_break_and_return_work_on_static_values():
    @tile.tile_function
    def pick(x, k):
        for i in range(10):
            if i == k:
                return tile.load(x, (i,))
        return None

    @tile.tile_function
    def body(x, o, n):
        total = 0
        for i in range(10):
            if i == 3:
                break
            if i == 1:
                continue
            total = total + pick(x, i)
        tile.store(o, (0,), total)

    assert call(body, [5, 6, 7, 8]) == [12]


def test_helpers_with_loops_are_ordinary_functions():
    @tile.tile_function
    def power(base, exponent):
        out = tile.constant(1)
        for _ in tile.range(exponent):
            out = out * base
        return out

    @tile.tile_function
    def body(x, o, n):
        tile.store(o, (0,), power(tile.load(x, (0,)), 5) + power(2, n))

    assert call(body, [3, 0]) == [243 + 4]


# -- functional forms --------------------------------------------------------------------------------------------------
def test_loops_without_rewriting():
    def body(x, o, n):
        acc = tile.for_loop((0, n, 1), 0, lambda i, c: c + tile.load(x, (i,)))
        tile.store(o, (0,), tile.cond(acc > 5, lambda: acc, lambda: -acc))

    assert call(body, [1, 2, 3]) == [6] and call(body, [1, 2]) == [-3]


# -- errors ------------------------------------------------------------------------------------------------------------
def failing(body, *args):
    with pytest.raises(KernelError) as info:
        build(body, 1, dt.int64, *args)
    return info.value


def marked(error):
    """The source line that the error points at."""
    return linecache.getline(error.where.file, error.where.line).strip()


def test_a_loop_variable_used_after_a_loop_that_may_not_run():
    @tile.tile_function
    def body(x, o, n):
        for i in tile.range(n):
            last = i
        tile.store(o, (0,), last)

    e = failing(body)
    assert "last is assigned only inside the loop, which may not run at all" in str(e)
    assert marked(e) == "tile.store(o, (0,), last)"


def test_a_variable_of_one_branch():
    @tile.tile_function
    def body(x, o, n):
        if tile.load(x, (0,)) > 0:
            v = 1
        tile.store(o, (0,), v + 1)

    assert "v is assigned in one branch of the `if` only" in str(failing(body))


def test_a_carried_variable_that_changes_its_type():
    @tile.tile_function
    def body(x, o, n):
        acc = tile.full((4,), 0, dt.int64)
        for _ in tile.range(n):
            acc = tile.sum(acc)
        tile.store(o, (0,), tile.sum(acc))

    e = failing(body)
    assert "acc changes its type in the loop: from tile<int64[4]> to int64" in str(e)


def test_a_static_variable_that_changes_in_a_traced_loop():
    @tile.tile_function
    def body(x, o, n):
        mode = "first"
        for i in tile.range(n):
            tile.store(o, (0,), i if mode == "first" else 0)
            mode = "later"

    assert "mode changes in the loop, but it is a str" in str(failing(body))


@pytest.mark.parametrize("word", ["break", "continue", "return"])
def test_leaving_a_traced_loop(word):
    namespace = {"tile": tile}

    @tile.tile_function
    def with_break(x, o, n):
        for i in tile.range(n):
            if i == 2:
                break

    @tile.tile_function
    def with_continue(x, o, n):
        for i in tile.range(n):
            if i == 2:
                continue

    @tile.tile_function
    def with_return(x, o, n):
        for _ in tile.range(n):
            return

    assert namespace
    e = failing({"break": with_break, "continue": with_continue, "return": with_return}[word])
    assert f"`{word}` inside a loop over tile.range is not supported" in str(e)


def test_return_under_a_traced_condition():
    @tile.tile_function
    def body(x, o, n):
        if tile.load(x, (0,)) > 0:
            return
        tile.store(o, (0,), 1)

    e = failing(body)
    assert "`return` under a condition that is known only when the kernel runs" in str(e)
    assert marked(e) == "if tile.load(x, (0,)) > 0:"


def test_a_tile_has_no_truth_and_no_iteration():
    @tile.tile_function
    def condition(x, o, n):
        if tile.load(x, (0,), (4,)) > 0:
            tile.store(o, (0,), 1)

    def plain(x, o, n):
        if tile.load(x, (0,)) > 0:
            tile.store(o, (0,), 1)

    def loop(x, o, n):
        for i in tile.range(n):
            tile.store(o, (0,), i)

    assert "the condition of an `if` is a bool scalar, not tile<bool[4]>" in str(failing(condition))
    assert "is known only when the kernel runs" in str(failing(plain))
    assert "decorate the function that holds the loop with @tile_function" in str(failing(loop))


@pytest.mark.parametrize("construct", ["global", "nonlocal", "yield", "walrus"])
def test_unsupported_constructs(construct):
    outer = 0

    @tile.tile_function
    def with_global(x, o, n):
        global something
        something = 1

    @tile.tile_function
    def with_nonlocal(x, o, n):
        nonlocal outer
        outer = 1

    @tile.tile_function
    def with_yield(x, o, n):
        yield 1

    @tile.tile_function
    def with_walrus(x, o, n):
        while (k := n) > 1:
            n = k

    body = {"global": with_global, "nonlocal": with_nonlocal, "yield": with_yield, "walrus": with_walrus}[construct]
    e = failing(body)
    assert {"walrus": ":="}.get(construct, construct) in e.message and "not supported" in e.message
    assert outer == 0 and e.where.file == __file__


def test_lambdas_are_refused():
    with pytest.raises(KernelError, match="a plain `def` function"):
        build(tile.tile_function(lambda x, o, n: tile.store(o, (0,), 1)))


def test_locations_of_ops_are_the_kernels_lines():
    fn = build(total)
    load, = ops(fn, "load")
    line = linecache.getline(__file__, load.loc.line)
    assert "acc += tile.load(x, (i,))" in line and load.loc.function == "total"
    loop, = ops(fn, "for")
    assert "for i in tile.range(n):" in linecache.getline(__file__, loop.loc.line)
