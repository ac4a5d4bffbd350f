"""The environment variables that Tessera reads: all of them, typed, in one table.

A setting that changes what is compiled enters the key of the compile cache.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SettingError(ValueError):
    """An environment variable holds something that it cannot."""


@dataclass(frozen=True)
class Setting:
    """One variable.

    Attributes:
        name: of the environment variable.
        parse: text to value; raises ValueError.
        default: what holds when it is not set; a function is called.
        keyed: its value enters the cache key.
        doc: one line.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    keyed: bool
    doc: str

    def get(self) -> Any:
        """The value now.

        Raises:
            SettingError: the variable holds something else; the message names it.
        """
        text = os.environ.get(self.name)
        if text is None or text == "":
            return self.default() if callable(self.default) else self.default
        try:
            return self.parse(text)
        except ValueError as e:
            raise SettingError(f"the environment variable {self.name} is {text!r}: {e}") from None


def _positive(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError("it must be a whole number, with K, M or G behind it where it counts bytes")
    n = int(text)
    if n < 1:
        raise ValueError("it must be at least 1")
    return n


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    unit = units.get(text[-1:].upper(), 0)
    return _positive(text[:-1]) * unit if unit else _positive(text)


def _models(text: str) -> tuple[str, ...]:
    if text.strip().isdigit():
        return ("simulated",) * int(text)
    return tuple(m.strip() for m in text.split(",") if m.strip())


def _cache_home() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tessera"


def private_folder(root: Path) -> bool:
    """Make the directory; False (with a warning) where somebody else could plant code in it."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        s = root.stat()
    except OSError:
        return False
    if s.st_uid != os.getuid() or s.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        warnings.warn(f"the compile cache {root} is not used: other users could write to it (it should belong to you "
                      "with mode 0700)", stacklevel=3)
        return False
    return True


def _directory_or_off(text: str) -> Path | None:
    return None if text.lower() in ("off", "0", "no", "none") else Path(text).expanduser()


DUMP = Setting("TESSERA_DUMP", lambda s: Path(s).expanduser(), None, False,
               "directory into which every stage of every program is written")
OVERRIDE = Setting("TESSERA_OVERRIDE", lambda s: Path(s).expanduser(), None, True,
                   "directory from which edited stages are read back")
CACHE = Setting("TESSERA_CACHE", _directory_or_off, _cache_home, False,
                "directory of the compile cache, or 'off'")
CACHE_LIMIT = Setting("TESSERA_CACHE_LIMIT", _size, 1 << 30, False, "bytes the compile cache may hold (1G, 500M …)")
THREADS = Setting("TESSERA_THREADS", _positive, None, False, "threads a program may use (default: all the process may)")
MEMORY_LIMIT = Setting("TESSERA_MEMORY_LIMIT", _size, 1 << 30, False,
                       "bytes of freed memory kept for reuse (1G, 500M …)")
VERIFY = Setting("TESSERA_VERIFY", lambda s: s.lower() not in ("0", "off", "no"), True, False,
                 "check each stage's output against its grammar")
DEBUG_EMPTY = Setting("TESSERA_DEBUG_EMPTY", lambda s: s.lower() not in ("0", "off", "no"), False, False,
                      "fill ts.empty() with NaN (integers: the lowest), so that reading what nobody wrote shows")
SIM_DEVICES = Setting("TESSERA_SIM_DEVICES", _models, (), False,
                      "simulated devices: how many, or their models (A100,H100)")

SETTINGS: tuple[Setting, ...] = (SIM_DEVICES, DEBUG_EMPTY, DUMP, OVERRIDE, CACHE, CACHE_LIMIT, THREADS, MEMORY_LIMIT, VERIFY)
