"""The compile cache: whole entries or none, whoever writes, dies or damages."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest

from tessera.runtime.cache import DiskCache, key_of, open_cache
from tessera.runtime.manifest import Manifest, pack, unpack
from tessera.targets.nvidia import driver

KEY = key_of("a", "program")


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", 1 << 20)


def entry(cache, tier="programs", key=KEY):
    return cache._path(tier, key)


def test_round_trip(cache):
    assert cache.get("programs", KEY) is None
    cache.put("programs", KEY, b"code")
    assert cache.get("programs", KEY) == b"code"
    assert cache.get("kernels", KEY) is None


def test_modes(cache):
    cache.put("programs", KEY, b"code")
    assert cache.root.stat().st_mode & 0o777 == 0o700
    assert entry(cache).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b + b"x",
                                    lambda b: b[:30] + bytes([b[30] ^ 1]) + b[31:], lambda b: b"X" + b[1:]])
def test_a_damaged_entry_counts_as_absent(cache, damage):
    cache.put("programs", KEY, b"some machine code")
    entry(cache).write_bytes(damage(entry(cache).read_bytes()))
    assert cache.get("programs", KEY) is None
    assert not entry(cache).exists()
    cache.put("programs", KEY, b"again")
    assert cache.get("programs", KEY) == b"again"


def test_the_least_recently_used_go_first(tmp_path):
    cache = DiskCache(tmp_path, 100_000)
    for i in range(10):
        cache.put("kernels", key_of(str(i)), bytes(9000))
        os.utime(entry(cache, "kernels", key_of(str(i))), (i, i))
    cache.get("kernels", key_of("0"))
    for i in range(10, 14):
        cache.put("kernels", key_of(str(i)), bytes(9000))
    cache.evict()
    assert sum(u.nbytes for u in cache.usage()) <= 100_000
    assert cache.get("kernels", key_of("0")) is not None
    assert cache.get("kernels", key_of("1")) is None
    assert cache.get("kernels", key_of("13")) is not None


def test_clear(cache):
    cache.put("programs", KEY, b"1")
    cache.put("kernels", KEY, b"2")
    assert cache.clear() == 2
    assert cache.get("programs", KEY) is None


def test_no_cache(tmp_path):
    off = DiskCache(None, 1)
    off.put("programs", KEY, b"1")
    assert off.get("programs", KEY) is None and off.clear() == 0
    assert all(u.files == 0 for u in off.usage())


def test_a_directory_that_others_can_write_is_not_used(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        cache = DiskCache(shared, 1 << 20)
    assert cache.root is None and "other users could write" in str(seen[0].message)


def test_a_path_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "cache", 1 << 20)
    cache.put("programs", KEY, b"1")
    assert cache.get("programs", KEY) is None


WRITER = """
import sys
from pathlib import Path
from tessera.runtime.cache import DiskCache, key_of
cache = DiskCache(Path(sys.argv[1]), 1 << 22)
print("ready", flush=True)
i = 0
while i < int(sys.argv[2]):
    k = key_of(str(i % 20))
    payload = (str(i % 20) * 5000).encode()
    cache.put("kernels", k, payload)
    got = cache.get("kernels", k)
    assert got is None or got == payload, i
    i += 1
"""


def writer(path, rounds):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(rounds)], stdout=subprocess.PIPE)


def whole(cache):
    for i in range(20):
        got = cache.get("kernels", key_of(str(i)))
        assert got is None or got == (str(i) * 5000).encode()


def test_several_processes(tmp_path):
    processes = [writer(tmp_path, 300) for _ in range(3)]
    cache = DiskCache(tmp_path, 1 << 22)
    while any(p.poll() is None for p in processes):
        whole(cache)
        time.sleep(0.01)
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert sum(u.files for u in cache.usage()) == 20


def test_killed_while_writing(tmp_path):
    cache = DiskCache(tmp_path, 1 << 22)
    for pause in (0.01, 0.03, 0.05):
        p = writer(tmp_path, 10**9)
        assert p.stdout.readline() == b"ready\n"
        time.sleep(pause)
        p.send_signal(signal.SIGKILL)
        p.wait()
        whole(cache)
    left = list(tmp_path.glob("*/*/.*"))
    for f in left:
        os.utime(f, (0, 0))
    cache.evict()
    assert not list(tmp_path.glob("*/*/.*"))


def test_manifest_round_trip():
    m = Manifest("f", [("f32", ["B", "768"])], [("f32", ["3*B"])], ["B"], "4*B+64", ["768*B"], ["index {value}"],
                 [("cholesky", [("f64", ["N", "N"])], "{outs = (1,)}")], 100, True, [("a_0", "a_12")], 9)
    back, objects = unpack(pack(m, [b"one", b"", b"three"]))
    assert objects == [b"one", b"", b"three"]
    assert (back.name, back.sizes, back.arena, back.waits, back.operations) == ("f", ["B"], "4*B+64", True, 9)
    assert [tuple(x) for x in back.inputs] == [("f32", ["B", "768"])]


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\xff\xff\xff\xff{}", b"\x02\x00\x00\x00{}", b"\x02\x00\x00\x00[]",
                                     b'\x13\x00\x00\x00{"manifest": {"version": 99}}'])
def test_payloads_that_are_no_program(payload):
    with pytest.raises(ValueError):
        unpack(payload)


def test_what_a_driver_assembles_is_kept_beside_it(tmp_path, monkeypatch):
    for name in ("CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE", "CUDA_CACHE_DISABLE"):
        monkeypatch.setenv(name, "x")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    driver.keep_code()
    folder = Path(os.environ["CUDA_CACHE_PATH"])
    assert folder == tmp_path / "cache" / "cuda" and int(os.environ["CUDA_CACHE_MAXSIZE"]) > 1 << 28
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "code").write_bytes(bytes(100))
    (used,) = (u for u in open_cache().usage() if u.tier == "cuda")
    assert (used.files, used.nbytes) == (1, 100)
    assert open_cache().clear() == 1 and not folder.exists()
    monkeypatch.setenv("CUDA_CACHE_PATH", "/elsewhere")
    driver.keep_code()
    assert os.environ["CUDA_CACHE_PATH"] == "/elsewhere"
