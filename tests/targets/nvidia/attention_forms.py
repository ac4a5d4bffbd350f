"""Attention as models write it: heads beside each other, shared keys, masks, offsets, what follows it.  Each form takes the copy engine's
and the matrix unit's program, which does all of it in one launch."""

import numpy as np

import tessera as ts


def split(t, heads):
    b, s, e = t.shape
    return t.reshape(b, s, heads, e // heads).transpose(0, 2, 1, 3)


def join(o):
    b, h, s, d = o.shape
    return o.transpose(0, 2, 1, 3).reshape(b, s, h * d)


def beside(q, k, v):
    return join(ts.attention(*(split(t, 2) for t in (q, k, v))))


def packed(x):
    return join(ts.attention(*(split(t, 2) for t in ts.split(x, 3, -1)), causal=True))


def window(q, k, v):
    i = ts.arange(q.shape[2])
    return ts.attention(q, k, v, (i[:, None] - i[None, :] <= 70) & (i[:, None] >= i[None, :]))


def causal(q, k, v):
    return ts.attention(q, k, v, causal=True)


def causal_and_mask(q, k, v, m):
    return ts.attention(q, k, v, m, causal=True)


def followed(q, k, v, r):
    return ts.attention(q, k, v).to(ts.f32) * 2.0 + r.to(ts.f32)


def drawn(*shapes, dtype=ts.bf16):
    return [ts.randn(*s).to(dtype) for s in shapes]


def heads(b, h, q, t, d, groups=1, dtype=ts.bf16):
    return drawn((b, h, q, d), (b, h // groups, t, d), (b, h // groups, t, d), dtype=dtype)


def holes(*shape, dead=0):
    """A mask that hides half of the keys, and all of them from the first ``dead`` queries."""
    m = np.random.default_rng(5).standard_normal(shape) > 0
    m[..., :dead, :] = False
    return ts.tensor(m)


def least(*shape):
    """As models write a mask: 0, or the least number there is."""
    m = np.where(holes(*shape, dead=1).numpy(), 0.0, np.finfo(np.float32).min)
    return ts.tensor(m.astype(np.float32))


FORMS = {
    "heads beside each other": lambda: (beside, drawn(*[(2, 130, 128)] * 3)),
    "one packed operand": lambda: (packed, drawn((1, 200, 384))),
    "shared keys": lambda: (causal, heads(1, 4, 72, 72, 64, 2)),
    "bool mask": lambda: (ts.attention, [*heads(1, 2, 72, 140, 64), holes(72, 140, dead=3)]),
    "mask of keys": lambda: (ts.attention, [*heads(2, 2, 72, 140, 64, dtype=ts.f16), holes(2, 1, 1, 140)]),
    "added mask, causal": lambda: (causal_and_mask, [*heads(2, 2, 140, 140, 64), *drawn((2, 1, 140, 140))]),
    "added numbers of each row": lambda: (ts.attention, [*heads(1, 2, 40, 130, 128), *drawn((2, 40, 1), dtype=ts.f32)]),
    "the least number added": lambda: (ts.attention, [*heads(1, 1, 70, 136, 64), least(70, 136)]),
    "window": lambda: (window, heads(1, 1, 300, 300, 64)),
    "more keys than queries": lambda: (causal, heads(1, 1, 100, 333, 64)),
    "queries that see nothing": lambda: (causal, heads(1, 1, 333, 100, 64)),
    "width 32": lambda: (causal, heads(1, 1, 200, 200, 32)),
    "width 96": lambda: (causal, heads(1, 1, 200, 200, 96)),
    "width 256": lambda: (causal, heads(1, 1, 200, 200, 256)),
    "f32 result with a residual": lambda: (followed, [*heads(1, 1, 200, 200, 64), *drawn((1, 1, 200, 64))]),
}


def check(form):
    """The form on the device beside f32 on the CPU; one launch of the explicit program."""
    f, inputs = FORMS[form]()
    fn = ts.function(f)
    got = fn(*(x.to("gpu:0") for x in inputs)).numpy().astype(np.float64)
    want = f(*(x.to(ts.f32) if x.dtype.is_float else x for x in inputs)).numpy()
    assert np.abs(got - want).max() < 6e-3 * np.abs(want).max()
    kernels = [k for p in fn.program(*inputs).executable_on("gpu:0").plans.values() for k in p.kernels]
    assert [(k.fn.name, k.module.explicit) for k in kernels] == [("attention", True)]
