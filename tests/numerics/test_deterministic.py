"""Reproducible runs, and finding where runs part."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import tessera as ts
from tessera import debug, errors
from tessera.tracing import eager, methods


def noisy(x):
    return ts.dropout(ts.softmax(x @ x, -1), 0.1).sum(0) + ts.deterministic.dropout(x, 0.5)[0]


def test_a_seed_fixes_the_draws_and_gives_the_stream_back():
    ts.manual_seed(9)
    state = ts.random.get_state()

    @ts.deterministic(seed=42)
    def draw():
        return ts.randn(5)

    assert np.array_equal(draw(), draw()) and ts.random.get_state() == state
    with ts.deterministic(seed=42):
        assert ts.deterministic.active() and np.array_equal(ts.randn(5), draw())
    with ts.deterministic.scope():
        assert ts.deterministic.active()
    assert not ts.deterministic.active()


def test_two_processes_give_the_same_bits():
    code = ("import tessera as ts, numpy as np\n"
            "@ts.deterministic(seed=42)\n"
            "def f(): x = ts.randn(40, 40); return ts.dropout(ts.softmax(x @ x, -1), 0.1), ts.gelu(x).sum(0)\n"
            "print(ts.deterministic.digest(f()))")
    run = [sys.executable, "-c", code]
    digests = {subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout for _ in range(2)}
    assert len(digests) == 1 and len(digests.pop()) == 65


@pytest.mark.parametrize("fn", [noisy, ts.jit(noisy)])
def test_verify_determinism(fn, capsys):
    assert ts.verify_determinism(fn, ts.randn(33, 33), num_runs=4)
    assert "✓ Function is deterministic" in capsys.readouterr().out
    with pytest.raises(errors.ArgumentError, match="at least two runs"):
        ts.verify_determinism(fn, ts.ones(3, 3), num_runs=1)


def test_a_function_that_is_not_is_caught():
    rng = np.random.default_rng()
    with pytest.raises(errors.NumericalError, match="gives other bits than run 1") as caught:
        ts.verify_determinism(lambda x: x * rng.random(), ts.ones(3), num_runs=3)
    assert "differs in 3 of 3 elements, first at [0]" in str(caught.value) and "test_deterministic.py" in str(caught.value)


class Unordered:
    """A program with a sum whose terms arrive in any order, as with float atomics."""

    def __init__(self, run, count):
        self.run, self.count, self.kernels = run, count, run.kernels

    def __call__(self, arrays):
        self.count[0] += 1
        return [np.asarray(r) * np.float32(1 + 1e-6 * (self.count[0] % 3)) for r in self.run(arrays)]


@pytest.fixture
def unordered_sums(monkeypatch):
    compile_graph, count = eager.compile_graph, [0]

    def planted(fn):
        run = compile_graph(fn)
        return Unordered(run, count) if any(op.name == "reduce_sum" for op in fn.body.ops) else run

    eager.clear()
    methods.clear()
    monkeypatch.setattr(eager, "compile_graph", planted)
    yield
    eager.clear()
    methods.clear()


def test_the_op_the_kernel_and_the_line_are_named(unordered_sums):
    @ts.debug.deterministic
    def f(x):
        y = ts.exp(x)
        z = y.sum(1)  # here
        return ts.sqrt(z)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        f(ts.ones(4, 5))
    (report,) = f.reports
    assert report.op == "reduce_sum" and report.kernels and "reduce" in report.kernels[0]
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# here" in text)
    assert report.where.endswith(f"test_deterministic.py:{line}") and "of 4 elements differ" in report.detail
    assert issubclass(seen[0].category, debug.NondeterminismWarning) and "op reduce_sum" in str(seen[0].message)


def test_values_that_python_computes_are_found_too():
    rng = np.random.default_rng()

    def f(x):
        return ts.exp(x) + rng.random()

    report = debug.find_nondeterminism(f, ts.ones(3))
    assert report.op == "python" and "another value when it was traced again" in report.detail
    assert debug.find_nondeterminism(noisy, ts.ones(8, 8)) is None
    with pytest.raises(errors.NumericalError, match="is not deterministic"):
        ts.debug.deterministic(f, strict=True)(ts.ones(3))


def test_all_reduce_joins_by_rank():
    values = [ts.tensor(v) for v in np.float32([1e8, 1.0, -1e8, 3.0, 0.25])]
    total = float(ts.deterministic.all_reduce(values))
    f32 = np.float32
    want = (f32(1e8) + f32(1.0)) + (f32(-1e8) + f32(3.0)) + f32(0.25)
    assert total == want
    assert float(ts.deterministic.all_reduce(values, "max")) == 1e8
    assert float(ts.deterministic.all_reduce(ts.tensor(3.0))) == 3.0
    assert float(ts.deterministic.all_reduce([ts.tensor(1.0), ts.tensor(2.0)], "mean")) == 1.5
    with pytest.raises(errors.ArgumentError, match="no operation 'product'"):
        ts.deterministic.all_reduce(values, "product")


def test_ops_that_say_they_are_not_deterministic_are_refused(monkeypatch):
    from tessera.tracing import policies
    monkeypatch.setitem(policies.NONDETERMINISTIC, "sqrt", "It is planted here.")
    with ts.deterministic.scope(), pytest.raises(errors.UnsupportedError, match="'sqrt' is not deterministic"):
        ts.sqrt(ts.ones(3))
    ts.sqrt(ts.ones(3))
