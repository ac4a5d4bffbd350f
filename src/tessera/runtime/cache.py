"""The compile cache on disk: files named by their key, in a directory of the user's own.

Three tiers: ``programs`` and ``kernels`` hold machine code, ``tuning`` what the autotuner found.  A file holds a checksum and the
payload; it is written under another name and renamed, so a reader sees a whole file or none, whatever other processes do and
whenever one is killed.  A damaged file counts as absent and is deleted.  The least recently used files go when the total exceeds
the limit.

The payload is machine code that will be run: a directory that others could write to is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..settings import CACHE, CACHE_LIMIT, private_folder

TIERS = ("programs", "kernels", "tuning")
DRIVER = "cuda"
"""Where NVIDIA's driver keeps what it assembles, by its own rules and limit (``targets/nvidia/driver.py``)."""
_MAGIC = b"TSCACHE1"
_DIGEST = 16
_STALE_SECONDS = 3600.0
_counter = itertools.count()


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def key_of(*parts: str | bytes) -> str:
    """A key over parts; their boundaries count."""
    h = hashlib.blake2b(digest_size=20)
    for p in parts:
        b = p.encode() if isinstance(p, str) else p
        h.update(len(b).to_bytes(8, "little") + b)
    return h.hexdigest()


@dataclass(frozen=True)
class Usage:
    """What a tier holds."""

    tier: str
    files: int
    nbytes: int


class DiskCache:
    """Files by (tier, key) below ``root``; None: nothing is ever found or kept.

    Args:
        limit: bytes that all files together may take.
    """

    def __init__(self, root: Path | None, limit: int):
        self.root = root if root is not None and private_folder(root) else None
        self.limit = limit
        self._written = limit  # so that the first write of a process looks at the total

    def _path(self, tier: str, key: str) -> Path:
        assert self.root is not None
        return self.root / tier / key[:2] / key

    def get(self, tier: str, key: str) -> bytes | None:
        """The payload, or None when it is absent or damaged."""
        if self.root is None:
            return None
        path = self._path(tier, key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + _DIGEST
        payload = raw[head:]
        if raw[:len(_MAGIC)] != _MAGIC or raw[len(_MAGIC):head] != digest(payload):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, tier: str, key: str, payload: bytes) -> None:
        """Keep ``payload``; a full or read-only disk is no error."""
        if self.root is None:
            return
        path = self._path(tier, key)
        temporary = path.with_name(f".{key[:8]}-{os.getpid()}-{next(_counter)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(temporary, "wb", opener=_private) as f:
                f.write(_MAGIC + digest(payload) + payload)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self._written += len(payload)
        if self._written > self.limit // 16:
            self._written = 0
            self.evict()

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry; leftovers of killed processes are removed on the way."""
        out: list[tuple[float, int, Path]] = []
        now = time.time()
        if self.root is None:
            return out
        for tier in TIERS:
            for path in (self.root / tier).glob("*/*"):
                try:
                    s = path.stat()
                    if path.name.startswith("."):
                        if now - s.st_mtime > _STALE_SECONDS:
                            path.unlink()
                        continue
                except OSError:
                    continue
                out.append((s.st_mtime, s.st_size, path))
        return out

    def evict(self) -> None:
        """Delete the least recently used files until the total is below nine tenths of the limit."""
        files = self._files()
        total = sum(n for _, n, _ in files)
        if total <= self.limit:
            return
        for _, n, path in sorted(files):
            if total <= self.limit * 9 // 10:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= n

    def clear(self) -> int:
        """Delete every entry; returns how many there were."""
        n = sum(u.files for u in self.usage())
        if self.root is not None:
            for tier in (*TIERS, DRIVER):
                shutil.rmtree(self.root / tier, ignore_errors=True)
        return n

    def usage(self) -> list[Usage]:
        files = self._files()
        assert self.root is not None or not files
        out = []
        for tier in TIERS:
            mine = [n for _, n, p in files if p.parent.parent.name == tier]
            out.append(Usage(tier, len(mine), sum(mine)))
        kept = [p.stat().st_size for p in (self.root / DRIVER).rglob("*") if p.is_file()] if self.root is not None else []
        return [*out, Usage(DRIVER, len(kept), sum(kept))]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@lru_cache(maxsize=1)
def source_hash() -> str:
    """A hash of the compiler's own sources and of LLVM's version: another compiler shares nothing with this one."""
    root = Path(__file__).parents[1]
    h = hashlib.blake2b(_llvm_version().encode(), digest_size=16)
    for room in ("types", "machine", "ir", "ops", "tracing", "transforms", "scheduling", "tiling", "kernels", "targets", "runtime"):
        for path in sorted((root / room).rglob("*.py")):
            h.update(str(path.relative_to(root)).encode())
            h.update(path.read_bytes())
    return h.hexdigest()


def _llvm_version() -> str:
    """The version of the code generator's package, read without importing it."""
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version("llvmlite")
    except PackageNotFoundError:
        return "none"


def open_cache() -> DiskCache:
    """The cache that the environment asks for."""
    return DiskCache(CACHE.get(), CACHE_LIMIT.get())
