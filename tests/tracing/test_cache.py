"""Caches: ring buffers, page tables, eviction, keys and values while decoding; results kept on disk."""

import subprocess
import sys

import numpy as np
import pytest

import tessera as ts
from tessera import errors
from tessera.cache import EvictionPolicy, Order, OutOfPages, PageFault


class PagedCache(ts.Cache):
    """The cache of the programming guide."""

    def __init__(self, max_batch, max_seq, dim, page_size=256):
        self.keys = ts.RingBuffer(max_batch, max_seq, dim)
        self.values = ts.RingBuffer(max_batch, max_seq, dim)
        self.page_table = ts.PageTable(page_size=page_size, num_pages=max_seq // page_size)

    @ts.cache.eviction_policy("lru")
    def get(self, position):
        page = self.page_table.get_page(position)
        return self.keys[page], self.values[page]

    @ts.cache.write_through
    def update(self, position, k, v):
        page = self.page_table.allocate_page(position)
        self.keys[page] = k
        self.values[page] = v


def entry(i, batch=2, dim=3):
    return ts.full((batch, dim), float(i))


# -- the parts -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 12])
def test_ring_buffer_holds_the_latest(chunk):
    ring = ts.RingBuffer(2, 5, 3)
    rng, history, size = np.random.default_rng(chunk), np.zeros((2, 0, 3), np.float32), ring.nbytes
    for _ in range(6):
        x = rng.standard_normal((2, chunk, 3)).astype(np.float32)
        history = np.concatenate([history, x], 1)
        ring.append(x)
        np.testing.assert_array_equal(ring.last().numpy(), history[:, -5:])
        np.testing.assert_array_equal(ring.last(2).numpy(), history[:, -2:] if len(ring) > 1 else history[:, -1:])
    assert ring.nbytes == size and len(ring) == 5
    ring.clear()
    assert len(ring) == 0 and ring.last().shape == (2, 0, 3)
    with pytest.raises(errors.ShapeError, match="no entries of the buffer"):
        ring.append(ts.zeros(2, 4))


def test_page_table():
    table = ts.PageTable(page_size=256, num_pages=3)
    a = table.allocate_page(0)
    assert {int(table.get_page(p)) for p in (0, 17, 255)} == {int(a)} and table.get_page(17).slot == int(a) * 256 + 17
    with pytest.raises(PageFault, match="position 256 has no page"):
        table.get_page(256)
    b, c = table.allocate_page(300), table.allocate_page(5000)
    assert len({int(a), int(b), int(c)}) == 3 and table.free_pages == []
    with pytest.raises(OutOfPages):
        table.allocate_page(600)
    table.free_page(310)
    assert table.free_pages == [int(b)] and int(table.allocate_page(600)) == int(b)
    table.free_page(0)
    with pytest.raises(PageFault, match="free already"):
        table.free_page(0)
    with pytest.raises(errors.ArgumentError, match="at least one page"):
        ts.PageTable(page_size=256, num_pages=100 // 256)
    with pytest.raises(IndexError):
        table.get_page(-1)


def test_eviction_orders():
    victims = {}
    for policy in EvictionPolicy:
        order = Order(policy)
        for k in "abc":
            order.add(k)
        for k in "aab":
            order.touch(k)
        out = []
        while len(order):
            out.append(order.victim())
            order.discard(out[-1])
        victims[policy.value] = "".join(out)
    assert victims == {"lru": "cab", "fifo": "abc", "lfu": "cba"}
    with pytest.raises(errors.ArgumentError, match="did you mean 'lru'"):
        ts.cache.eviction_policy("lrü")


# -- the guide's cache -------------------------------------------------------------------------------------------------------
def test_hits_misses_and_eviction():
    cache = PagedCache(2, 12, 3, page_size=4)
    for p in (0, 5, 9):
        cache.update(p, entry(p), entry(-p))
    assert cache.get(0)[0].tolist() == entry(0).tolist()
    with pytest.raises(PageFault):
        cache.get(100)
    cache.update(100, entry(100), entry(-100))  # evicts the page of position 5: the least recently used
    assert cache.get(100)[1].tolist() == entry(-100).tolist() and cache.get(9)[0].tolist() == entry(9).tolist()
    with pytest.raises(PageFault):
        cache.get(5)
    assert (cache.hits, cache.misses, cache.evictions) == (3, 2, 1) and cache.stats()["writes"] == 4
    assert cache.clear() == 2 * 2 * 12 * 3 * 4
    with pytest.raises(PageFault):
        cache.get(9)


def test_write_through_reaches_the_store_before_it_returns():
    cache, seen = PagedCache(1, 8, 2, page_size=4), []

    class Store:
        def write(self, key, value):
            seen.append((key, value[0].tolist()))

    cache.backing = Store()
    for p in range(3):
        cache.update(p, entry(p, 1, 2), entry(p, 1, 2))
        assert seen[-1] == (p, [[p, p]])
    cache.backing = {}
    cache.update(3, entry(3, 1, 2), entry(3, 1, 2))
    assert list(cache.backing) == [3]
    with pytest.raises(TypeError, match=r"defines no get"):
        ts.Cache().get(0)


# -- decoding ------------------------------------------------------------------------------------------------------------------
VOCABULARY, DIM, HEADS = 31, 16, 2


class Decoder:
    """One attention layer with tied weights, enough to continue a text greedily."""

    def __init__(self):
        rng = np.random.default_rng(0)
        draw = lambda *shape: ts.tensor((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))
        self.embedding, self.qkv, self.out = draw(VOCABULARY, DIM), draw(DIM, 3 * DIM), draw(DIM, VOCABULARY)

    def heads(self, t):
        return ts.moveaxis(t.reshape(1, t.shape[0], HEADS, DIM // HEADS), 1, 2)

    def split(self, tokens):
        x = ts.embedding(self.embedding * 3.0, ts.tensor(tokens))
        return [self.heads(t) for t in ts.split(x @ self.qkv, 3, axis=1)]

    def logits(self, y):
        return ts.moveaxis(y, 1, 2).reshape(-1, DIM)[-1] @ self.out


def choose(logits, out):
    """The greedy choice among the tokens that are not among the last ones, so that the text does not stand still."""
    scores = logits.numpy().copy()
    scores[out[-6:]] = -np.inf
    return int(np.argmax(scores))


def recompute(model, tokens, steps, window=None):
    out = list(tokens)
    for _ in range(steps):
        q, k, v = model.split(out if window is None else out[-window:])
        out.append(choose(model.logits(ts.attention(q[:, :, -1:], k, v)), out))
    return out


@pytest.mark.parametrize("kind", ["kv", "kv window", "ring"])
def test_decoding_equals_recomputing(kind):
    model, steps, prompt = Decoder(), 300, [1, 5, 7]
    window = 40 if kind != "kv" else None
    want = recompute(model, prompt, steps, window)
    cache = ts.KVCache(max_seq=window)
    rings = [ts.RingBuffer(HEADS, 40, DIM // HEADS) for _ in range(2)]
    out, new = list(prompt), list(prompt)
    for _ in range(steps):
        q, k, v = model.split(new)
        if kind == "ring":
            for ring, t in zip(rings, (k, v), strict=True):
                ring.append(t[0])
            keys, values = (ring.last().reshape(1, HEADS, -1, DIM // HEADS) for ring in rings)
        else:
            keys, values = cache.update(k, v)
        new = [choose(model.logits(ts.attention(q[:, :, -1:], keys, values)), out)]
        out += new
    assert out == want and len(set(out)) > 6


def test_kv_cache_sizes_and_errors():
    cache = ts.KVCache()
    assert cache.nbytes == 0
    with pytest.raises(PageFault, match="empty"):
        cache.get()
    cache.update(ts.ones(2, 3, 5, 4), ts.ones(2, 3, 5, 6))
    assert len(cache) == 5 and cache.get()[1].shape == (2, 3, 5, 6) and cache.get(4)[0].shape == (2, 3, 4)
    with pytest.raises(PageFault, match="position 5"):
        cache.get(5)
    with pytest.raises(errors.ShapeError, match="do not fit those"):
        cache.update(ts.ones(1, 3, 1, 4), ts.ones(1, 3, 1, 6))
    held = cache.nbytes
    assert held > 0 and cache.clear() == held and cache.nbytes == 0
    with pytest.raises(errors.ShapeError, match="dim 8"):
        ts.KVCache(max_batch=1, max_seq=4, dim=8).update(ts.ones(1, 1, 4), ts.ones(1, 1, 4))
    small = ts.KVCache(max_seq=3)
    small.update(ts.arange(10).to(ts.f32).reshape(1, 10, 1), ts.zeros(1, 10, 1))
    assert small.get()[0].tolist() == [[[7], [8], [9]]]


# -- on disk ---------------------------------------------------------------------------------------------------------------------
PROGRAM = """
import sys, numpy as np, tessera as ts
calls = []
@ts.persistent_cache(sys.argv[1])
def forward(x, model_version):
    calls.append(1)
    a = x.numpy()  # no compiler in this process
    return {"y": ts.tensor(a * 2), "version": model_version, "parts": (1.5, None, [ts.tensor(a.sum())])}
for n in range(3, int(sys.argv[3]) + 1):
    out = forward(ts.tensor(np.arange(n, dtype=np.float32)), sys.argv[2])
print(len(calls), out["y"].tolist()[-1], out["version"], out["parts"][2][0].item(), forward.cache_info()["rebuilt"])
"""


def forward(path, version="1", n=5):
    return [sys.executable, "-c", PROGRAM, str(path), version, str(n)]


def run(*args, **kwargs):
    return subprocess.run(forward(*args, **kwargs), capture_output=True, text=True, check=True, timeout=100).stdout.split()


def test_another_process_hits(tmp_path):
    path = tmp_path / "deep" / "cache.db"
    assert run(path) == ["3", "8.0", "1", "10.0", "0"]
    assert run(path) == ["0", "8.0", "1", "10.0", "0"]
    assert run(path, version="2")[0] == "3"
    path.write_bytes(b"no database" * 500)
    assert run(path, n=6) == ["4", "10.0", "1", "15.0", "1"]
    assert run(path)[0] == "0" and (tmp_path / "deep" / "cache.db.damaged").exists()


def test_two_writers(tmp_path):
    path = tmp_path / "cache.db"
    running = [subprocess.Popen(forward(path, version=v, n=60), stdout=subprocess.PIPE, text=True) for v in "12"]
    assert [p.communicate(timeout=100)[0].split()[0] for p in running] == ["58", "58"]
    assert run(path, version="1", n=60)[0] == "0"


def test_keys_and_values(tmp_path):
    calls = []

    @ts.persistent_cache(tmp_path / "c.db")
    def f(x, k=1, *, mode="a"):
        calls.append(1)
        return x * k

    f(ts.ones(3)), f(ts.ones(3), 1), f(x=ts.ones(3), mode="a")
    assert len(calls) == 1
    f(ts.ones(3).to(ts.f64)), f(ts.ones(3), 1.0), f(ts.ones(3), mode="b"), f(ts.ones(1, 3))
    assert len(calls) == 5 and f.cache_info() == {"hits": 2, "misses": 5, "size": 5, "rebuilt": 0}
    assert f(ts.ones(3).to(ts.bf16)).dtype is ts.bf16 and f(ts.ones(3).to(ts.bf16)).tolist() == [1, 1, 1]
    f.cache_clear()
    assert f.cache_info()["size"] == 0
    with pytest.raises(errors.ArgumentError, match="cannot key on a object"):
        f(object())
    with pytest.raises(errors.ArgumentError, match="cannot store a set"):
        ts.persistent_cache(tmp_path / "c.db")(lambda: {1})()
    with pytest.raises(errors.TracingError, match="values of its arguments"):
        ts.jit(f)(ts.ones(3))
    with pytest.raises(errors.ArgumentError, match="needs a file"):
        ts.persistent_cache(lambda: 1)


def test_a_damaged_row_is_computed_again(tmp_path):
    import sqlite3
    calls = []

    @ts.persistent_cache(tmp_path / "c.db")
    def f(x):
        calls.append(1)
        return x

    f(1)
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("UPDATE results SET value = x'00'")
    assert f(1) == 1 and f(1) == 1 and len(calls) == 2
