"""``tessera info``: devices, features, versions, the cache, and whether the imported package is the right one."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "ml_dtypes", "llvmlite", "optree", "rich")
DISTRIBUTION = "tessera-lang"


def add_parser(sub: Any) -> None:
    p: argparse.ArgumentParser = sub.add_parser("info", help="devices, features and versions")
    p.add_argument("--json", action="store_true", help="as JSON")
    p.set_defaults(run=run)


def owner_warning(owners: list[str]) -> str | None:
    """What is wrong with the distributions that install a module called ``tessera``; None when nothing is."""
    strangers = sorted({o for o in owners if o.lower().replace("_", "-") != DISTRIBUTION})
    if not strangers:
        return None
    return (f"the module 'tessera' is also installed by {', '.join(strangers)}, a stranger's project of the same name: "
            f"uninstall it and install {DISTRIBUTION} again")


def collect() -> dict[str, Any]:
    """Everything that the command prints, as plain data."""
    from .. import __version__
    from ..device import backend
    from ..machine import host_cpu
    from ..runtime import get_num_threads
    from ..runtime.cache import open_cache
    from ..settings import SETTINGS
    m = host_cpu()
    cache = open_cache()
    owners = metadata.packages_distributions().get("tessera", [])
    return {
        "tessera": __version__, "path": str(Path(__file__).parents[1]), "python": sys.version.split()[0],
        "packages": {p: _version(p) for p in _PACKAGES},
        "owners": sorted(set(owners)), "warning": owner_warning(owners),
        "backend": backend(),
        "devices": [{
            "kind": "cpu", "name": m.name, "target": f"{m.triple} {m.cpu}", "features": list(m.features),
            "vector_bits": m.vector_bits, "threads": m.threads, "threads_used": get_num_threads(),
            "caches": [{"level": c.level, "bytes": c.size} for c in m.caches],
            "matrix_instructions": [i.name for i in m.matrix_instructions],
        }],
        "cache": {"path": None if cache.root is None else str(cache.root), "limit": cache.limit,
                  **{u.tier: {"files": u.files, "bytes": u.nbytes} for u in cache.usage()}},
        "settings": {s.name: None if s.get() is None else str(s.get()) for s in SETTINGS},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    from rich.console import Console
    from rich.text import Text
    out = Console(highlight=False, soft_wrap=True, emoji=False)
    for name, value in _rows(facts):
        out.print(Text.assemble((f"{name:<21}", "bold"), value))
    if facts["warning"]:
        out.print(f"warning: {facts['warning']}", style="red", markup=False)
    return 0


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, cache = facts["devices"][0], facts["cache"]
    packages = ", ".join(f"{k} {v or 'missing'}" for k, v in facts["packages"].items())
    levels = ", ".join(f"L{c['level']} {_bytes(c['bytes'])}" for c in cpu["caches"])
    kept = "off" if cache["path"] is None else (
        f"{cache['path']}: {cache['programs']['files']} programs, {cache['kernels']['files']} kernels, "
        f"{_bytes(cache['programs']['bytes'] + cache['kernels']['bytes'])} of {_bytes(cache['limit'])}")
    return [
        ("tessera", f"{facts['tessera']} from {facts['path']}"),
        ("python", facts["python"]),
        ("packages", packages),
        ("backend", facts["backend"]),
        ("cpu", cpu["name"]),
        ("target", f"{cpu['target']}, {cpu['vector_bits']}-bit vectors"),
        ("features", " ".join(cpu["features"])),
        ("matrix units", ", ".join(cpu["matrix_instructions"]) or "none"),
        ("caches", levels),
        ("threads", f"{cpu['threads_used']} of {cpu['threads']}"),
        ("compile cache", kept),
        *[(k, v) for k, v in facts["settings"].items() if v is not None],
    ]


def _bytes(n: int) -> str:
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{n} B"
