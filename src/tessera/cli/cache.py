"""``tessera cache``: what the compile cache holds, and emptying it."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(sub: Any) -> None:
    p: argparse.ArgumentParser = sub.add_parser("cache", help="the compile cache: what it holds, or empty it")
    p.add_argument("action", nargs="?", choices=("info", "clear"), default="info")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    from ..runtime.cache import open_cache
    from .info import _bytes
    cache = open_cache()
    if cache.root is None:
        print("the compile cache is off")
        return 0
    if args.action == "clear":
        print(f"deleted {cache.clear()} entries from {cache.root}")
        return 0
    print(f"{cache.root} (limit {_bytes(cache.limit)})")
    for u in cache.usage():
        print(f"  {u.tier}: {u.files} files, {_bytes(u.nbytes)}")
    return 0
