"""Random graphs through the scheduler, against the Graph interpreter; and the memory plan of what comes out."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from random_graphs import graphs
from sched_cases import arguments, check_memory, lower, size

from tessera.ir.core import Function
from tessera.ir.interpret_graph import interpret as run_graph
from tessera.ir.interpret_sched import interpret as run_sched
from tessera.scheduling.memory import aligned

COMMON = settings(derandomize=True, deadline=None, database=None,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])


@settings(COMMON, max_examples=60)
@given(graphs())
def test_a_scheduled_graph_means_what_the_graph_means(fn: Function) -> None:
    env = {"B": 4}
    xs = arguments(fn, env)
    expected = run_graph(fn, xs, env)
    program = lower(fn)
    got = [np.full_like(r, np.nan) for r in expected]
    run_sched(program, [*xs, *got], env)
    for e, g in zip(expected, got, strict=True):
        scale = max(1.0, float(np.max(np.abs(e[np.isfinite(e)]), initial=0)))
        np.testing.assert_allclose(g, e, rtol=2e-4, atol=2e-4 * scale)


@settings(COMMON, max_examples=60)
@given(graphs())
def test_live_temporaries_never_overlap(fn: Function) -> None:
    program = lower(fn)
    for b in (1, 2, 7, 129):
        check_memory(program, {"B": b})


def test_sizes_are_aligned() -> None:
    from tessera.types.dims import name
    assert aligned(1) == 64 and aligned(128) == 128
    for b in (1, 15, 16, 17):
        assert size(aligned(4 * name("B")), {"B": b}) == -(-4 * b // 64) * 64
