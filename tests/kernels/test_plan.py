"""How products are cut up: pure decisions, no code is built."""

from __future__ import annotations

from dataclasses import replace

import pytest
from products import product_op

from tessera.kernels.plan import plan_product
from tessera.machine import X86_AMX, X86_AVX512
from tessera.types.dims import name
from tessera.types.dtypes import bf16

ZEN = replace(X86_AVX512, tune="znver4", threads=2)
XEON = replace(X86_AMX, threads=2)


def plan(machine, m, n, k, **kw):
    return plan_product(product_op(m, n, k, **kw), machine, m, n, k, ())


@pytest.mark.parametrize("k, depth", [(64, 64), (256, 256), (300, 160), (768, 256), (1100, 224)])
def test_depths_are_equal_parts(k: int, depth: int) -> None:
    assert plan(ZEN, 512, 512, k).depth == depth


@pytest.mark.parametrize("m, n, k", [(256, 768, 3072), (256, 3072, 768), (1024, 1024, 1024), (768, 3072, 256), (256, 50257, 768),
                                     (64, 400000, 128), (400000, 64, 128)])
@pytest.mark.parametrize("machine", [ZEN, XEON], ids=["zen", "xeon"])
def test_two_threads_share_evenly(machine, m: int, n: int, k: int) -> None:
    p = plan(machine, m, n, k)
    blocks = p.grid_m * p.grid_n
    done = -(-blocks // 2) * p.rows * p.columns              # what the thread with most to do computes
    assert done <= 1.08 * m * n / 2, (p.rows, p.columns, p.grid_m, p.grid_n)
    assert p.rows * p.grid_m >= m and p.columns * p.grid_n >= n


def test_panels_of_units_stay_in_the_second_cache() -> None:
    for machine in (XEON, replace(ZEN, features=(*ZEN.features, "avx512bf16"))):
        p = plan(machine, 2048, 2048, 2048, dtype=bf16)
        assert p.unit is not None and p.depth == 512
        assert p.depth * p.columns * 2 + p.rows_padded * (p.columns + 16) * 4 <= 1900 << 10


@pytest.mark.parametrize("n", [1000, "N"])
def test_symbolic_rows_cover_every_size(n) -> None:
    size = name(n) if isinstance(n, str) else n
    p = plan(ZEN, name("M"), size, 512)
    assert p.columns % p.nr == 0 and not p.whole_rows


def test_a_result_of_nothing() -> None:
    p = plan(ZEN, 0, 64, 64)
    assert p.grid_m == 0
