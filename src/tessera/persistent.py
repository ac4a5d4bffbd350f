"""``ts.persistent_cache``: results of a function kept on disk, across processes.

One SQLite file holds many functions' results.  A key is the digest of the function (its name and code) and of all arguments, tensors
by their bytes; a result is stored as a description in JSON and raw bytes with a checksum, so that reading a file never runs code from it.
Several processes may write at once; a file that is no database is set aside and built anew.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optree

from .errors import ArgumentError, TracingError
from .tracing.recorder import STATE
from .tracing.tensor import Tensor, make
from .types.dtypes import as_dtype

_SCHEMA = "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, function TEXT NOT NULL, value BLOB NOT NULL, digest BLOB NOT NULL)"
_WAIT = 30.0  # seconds a writer waits for another


# -- keys --------------------------------------------------------------------------------------------------------------------
def _digest_of(value: Any, into: Any) -> None:
    """Feed a value's content into a digest.

    Raises:
        ArgumentError: an object without a content that another process would have, too.
    """
    if isinstance(value, Tensor | np.ndarray):
        a = np.ascontiguousarray(value)
        into.update(f"tensor {a.dtype} {a.shape}\n".encode())
        into.update(a.view(np.uint8).reshape(-1) if a.size else b"")
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        into.update(f"{type(value).__name__} {value!r}\n".encode())
    elif isinstance(value, tuple | list):
        into.update(f"{type(value).__name__} {len(value)}\n".encode())
        for v in value:
            _digest_of(v, into)
    elif isinstance(value, dict):
        into.update(f"dict {len(value)}\n".encode())
        for k in sorted(value, key=repr):
            _digest_of(k, into)
            _digest_of(value[k], into)
    elif isinstance(value, Path) or type(value).__module__.startswith("tessera.types"):
        into.update(f"{type(value).__name__} {value}\n".encode())
    else:
        raise ArgumentError(
            f"persistent_cache cannot key on a {type(value).__name__}", received=repr(value)[:80],
            sentence="Another process knows an argument by its content: tensors, numbers, texts, and tuples, lists and dicts of them.",
            hints=["Pass what distinguishes the object (a version, a name) instead", "Use ts.memoize within one process"])


def _code_digest(code: Any, into: Any) -> None:
    into.update(code.co_code)
    into.update(" ".join(code.co_names).encode())
    for c in code.co_consts:
        if inspect.iscode(c):
            _code_digest(c, into)
        else:
            into.update(f"{c!r}\n".encode() if not isinstance(c, frozenset) else repr(sorted(map(repr, c))).encode())


# -- values --------------------------------------------------------------------------------------------------------------------
def _pack(value: Any) -> bytes:
    """A tree of tensors and plain values as bytes.

    Raises:
        ArgumentError: it holds something else.
    """
    blobs: list[bytes] = []

    def describe(v: Any) -> Any:
        if isinstance(v, Tensor | np.ndarray):
            a = np.ascontiguousarray(v)
            blobs.append(a.tobytes())
            kind = "tensor" if isinstance(v, Tensor) else "array"
            return {kind: [as_dtype(a.dtype).name, list(a.shape), len(blobs[-1])]}
        if v is None or isinstance(v, bool | int | str):
            return v
        if isinstance(v, float):
            return {"float": v.hex()}
        if isinstance(v, complex):
            return {"complex": [v.real.hex(), v.imag.hex()]}
        if type(v) in (tuple, list):
            return {type(v).__name__: [describe(x) for x in v]}
        if type(v) is dict and all(isinstance(k, str) for k in v):
            return {"dict": {k: describe(x) for k, x in v.items()}}
        raise ArgumentError(f"persistent_cache cannot store a {type(v).__name__}", received=repr(v)[:80], sentence="Results are tensors, "
                            "numbers and texts, in tuples, lists and dicts with text keys.")

    head = json.dumps(describe(value)).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(blobs)


def _unpack(data: bytes) -> Any:
    size = int.from_bytes(data[:8], "little")
    at = 8 + size

    def build(d: Any) -> Any:
        nonlocal at
        if not isinstance(d, dict):
            return d
        ((kind, v),) = d.items()
        if kind in ("tensor", "array"):
            name, shape, n = v
            a = np.frombuffer(data[at:at + n], as_dtype(name).np).reshape(shape).copy()
            at += n
            return make(a) if kind == "tensor" else a
        if kind == "float":
            return float.fromhex(v)
        if kind == "complex":
            return complex(float.fromhex(v[0]), float.fromhex(v[1]))
        if kind == "dict":
            return {k: build(x) for k, x in v.items()}
        return tuple(build(x) for x in v) if kind == "tuple" else [build(x) for x in v]

    return build(json.loads(data[8:8 + size]))


# -- the file --------------------------------------------------------------------------------------------------------------------
class Store:
    """The SQLite file.  ``rebuilt`` counts how often it was found damaged."""

    def __init__(self, path: Path):
        self.path, self.rebuilt = path, 0
        self._lock = threading.Lock()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
        try:
            db.execute(_SCHEMA)
            yield db
        finally:
            db.close()

    def _run(self, act: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._lock:
            for attempt in (0, 1):
                try:
                    with self._open() as db:
                        return act(db)
                except sqlite3.OperationalError:
                    raise  # locked for too long, no space, no permission: not damage
                except sqlite3.DatabaseError:
                    if attempt:
                        raise
                    self._set_aside()
        return None

    def _set_aside(self) -> None:
        """Another process may have done so already: then the file is a database again."""
        try:
            with self.path.open("rb") as f:
                if f.read(16) == b"SQLite format 3\0" and self._sound():
                    return
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
            self.rebuilt += 1
        except FileNotFoundError:
            pass

    def _sound(self) -> bool:
        try:
            with self._open() as db:
                return bool(db.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        except sqlite3.DatabaseError:
            return False

    def get(self, key: bytes) -> bytes | None:
        """The stored bytes; None where there are none, or damaged ones."""
        row = self._run(lambda db: db.execute("SELECT value, digest FROM results WHERE key = ?", (key,)).fetchone())
        if row is None or hashlib.sha256(row[0]).digest() != row[1]:
            return None
        return bytes(row[0])

    def put(self, key: bytes, function: str, value: bytes) -> None:
        self._run(lambda db: db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)",
                                        (key, function, value, hashlib.sha256(value).digest())))

    def clear(self, function: str) -> None:
        self._run(lambda db: db.execute("DELETE FROM results WHERE function = ?", (function,)))

    def size(self, function: str) -> int:
        return int(self._run(lambda db: db.execute("SELECT count(*) FROM results WHERE function = ?", (function,)).fetchone()[0]))


# -- the decorator -----------------------------------------------------------------------------------------------------------------
def persistent_cache(path: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``@ts.persistent_cache("~/.tessera/cache.db")``: keep results in a file, by the content of all arguments.

    Another process that calls the same function (same name and code) with equal arguments gets the stored result.  What a function
    takes from its surroundings, a model's weights for instance, is not part of the key: pass a version.  The result has
    ``cache_info()`` (hits, misses, size, rebuilt) and ``cache_clear()``.

    Raises:
        ArgumentError: when called, for an argument or a result that has no content to key on or to store.
        TracingError: when called inside a traced function.
    """
    if callable(path):
        raise ArgumentError("persistent_cache() needs a file", expected='@ts.persistent_cache("~/.tessera/cache.db")')
    store = Store(Path(path).expanduser())

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        target = getattr(fn, "fn", fn)
        name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', type(target).__name__)}"
        code = hashlib.sha256()
        if hasattr(target, "__code__"):
            _code_digest(target.__code__, code)
        signature = inspect.signature(target)
        counts = {"hits": 0, "misses": 0}

        @functools.wraps(target)
        def kept(*args: Any, **kwargs: Any) -> Any:
            leaves: list[Any] = optree.tree_leaves((args, kwargs))  # type: ignore[arg-type]
            if STATE.trace is not None and any(isinstance(t, Tensor) and t.is_traced for t in leaves):
                raise TracingError(f"{name.rpartition('.')[2]!r} looks results up by the values of its arguments",
                                   hints=["Call it outside the traced function"])
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            digest = hashlib.sha256(f"{name}\n".encode() + code.digest())
            _digest_of(dict(bound.arguments), digest)
            found = store.get(digest.digest())
            if found is not None:
                counts["hits"] += 1
                return _unpack(found)
            counts["misses"] += 1
            out = fn(*args, **kwargs)
            store.put(digest.digest(), name, _pack(out))
            return out

        kept.cache_info = lambda: {**counts, "size": store.size(name), "rebuilt": store.rebuilt}  # type: ignore[attr-defined]
        kept.cache_clear = lambda: store.clear(name)  # type: ignore[attr-defined]
        return kept

    return decorate


__all__ = ["persistent_cache"]
