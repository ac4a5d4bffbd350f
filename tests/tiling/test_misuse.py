"""The tile language called wrongly: errors say which operation, what it takes, and where."""

import inspect

import pytest

import tessera as ts
from tessera import tile


def helper(v):
    return v.bogus


def raised(body):
    """The error of a kernel of this body."""
    kernel = ts.kernel(body)
    with pytest.raises(Exception) as e:
        kernel(ts.ones(4), ts.ones(4))
    return e.value


@pytest.mark.parametrize(("body", "text", "takes"), [
    (lambda x, y: tile.store(y, tile.sum(x, axes=0)), "tile.sum() has no argument 'axes'; did you mean 'axis'?", "tile.sum(x, axis=None"),
    (lambda x, y: tile.store(y), "tile.store() missing 1 required positional argument: 'value'", "tile.store(x, value"),
    (lambda x, y: tile.store(y, tile.exp()), "exp", None),
    (lambda x, y: tile.store(y, tile.warp.shuffle(x)), "tile.warp.shuffle() missing 1 required", "tile.warp.shuffle(x, lane_id"),
    (lambda x, y: tile.store(y, tile.warp.reduce_sum()), "tile.warp.reduce_sum() missing 1 required", "tile.warp.reduce_sum(x"),
    (lambda x, y: tile.block.sync(3), "tile.block.sync() takes", "tile.block.sync()"),
    (lambda x, y: tile.fragment.b((16, 8), kind=1), "tile.fragment.b() has no argument 'kind'", "tile.fragment.b(shape"),
    (lambda x, y: tile.fragment.b(), "a fragment needs a shape", "tile.fragment.b("),
    (lambda x, y: tile.fragment.c((16, 8)), "a fragment needs an element type", "ts.f32"),
    (lambda x, y: tile.fragment.a((16, 8), "bogus"), "no dtype is called 'bogus'", "ts.bf16"),
    (lambda x, y: tile.store(y, helper(tile.load(x))), "has no attribute 'bogus'", None),
    (lambda x, y: tile.store(y, x.shap), "of a kernel has no attribute 'shap'; did you mean 'shape'?", None),
])
def test_wrong_calls(body, text, takes):
    e = raised(_as_def(body))
    assert isinstance(e, ts.KernelError), repr(e)
    assert text in str(e) and (takes is None or takes in (e.expected or "")), str(e)
    assert "# ← Error here" in str(e)


def _as_def(body):
    """The lambda as a ``def``, which kernels are."""
    def k(x, y):
        body(x, y)
        tile.store(y, tile.load(x))

    return k


@pytest.mark.parametrize(("fault", "kind"), [(lambda: 1 + "a", TypeError), (lambda: {}["k"], KeyError), (lambda: int("x"), ValueError)])
def test_errors_of_the_users_own_stay(fault, kind):
    def k(x, y):
        fault()
        tile.store(y, tile.load(x))

    assert type(raised(k)) is kind


def test_no_operation_answers_with_a_bare_error():
    """Every function of the language, called with nothing, too much, and an argument that it does not have."""
    bare = []
    for name in tile.__all__:
        operation = getattr(tile, name)
        if not inspect.isfunction(operation):
            continue
        for args, kwargs in (((), {}), ((None,) * 9, {}), ((None,), {"bogus": 1})):
            def k(x, y, operation=operation, args=args, kwargs=kwargs):
                operation(*args, **kwargs)
                tile.store(y, tile.load(x))

            kernel = ts.kernel(k)
            try:
                kernel.build({"x": ts.ones(4).type, "y": ts.ones(4).type}, {"operation": operation, "args": args, "kwargs": kwargs})
            except ts.TesseraError:
                continue
            except Exception as e:
                bare.append((name, args, repr(e)))
    assert not bare
