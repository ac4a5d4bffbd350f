"""``tessera check FILE``: shape, type and effect errors of the functions in a file, without running them."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import TesseraError
from .load import LoadFailed, functions_of, is_kernel, kernel_types, load_file, say_error


def add_parser(sub: Any) -> None:
    p: argparse.ArgumentParser = sub.add_parser("check", help="find shape and type errors without running anything")
    p.add_argument("files", nargs="+", metavar="FILE", help="Python files with traced functions")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status: 1 when a file has an error."""
    from rich.console import Console
    out = Console(soft_wrap=True, highlight=False, emoji=False)
    failed = 0
    for file in args.files:
        try:
            functions = functions_of(load_file(file))
        except LoadFailed as e:
            say_error(str(e))
            failed += 1
            continue
        if not functions:
            out.print(f"{file}: no traced functions or kernels", markup=False)
        for name, fn in functions.items():
            verdict, text = check(fn)
            if verdict == "error":
                failed += 1
                out.print(f"{file}:{name}: ", style="red", end="", markup=False)
                out.print(text, markup=False)
            else:
                out.print(f"{file}:{name}: {verdict} {text}", markup=False, style="green" if verdict == "ok" else "yellow")
    return 1 if failed else 0


def check(fn: Any) -> tuple[str, str]:
    """(``ok``, its type), (``skipped``, why) or (``error``, the error's text) for a traced function."""
    if not annotated(fn):
        return "skipped", "(its parameters have no full tensor types)"
    try:
        if is_kernel(fn):
            built = fn.build(kernel_types(fn))
            return "ok", f"kernel of {', '.join(str(a.type) for a in built.function.args[:len(built.names)])}"
        graph = fn.trace()
    except (TesseraError, TypeError, ValueError) as e:
        return "error", str(e)
    results = ", ".join(str(t) for t in graph.result_types)
    return "ok", f"({', '.join(str(a.type) for a in graph.args)}) -> {results}"


def annotated(fn: Any) -> bool:
    """True when every parameter without a default has a tensor type with known rank."""
    if is_kernel(fn):
        return kernel_types(fn) is not None
    for p in fn.signature.parameters.values():
        spec = fn.declared.params.get(p.name)
        full = spec is not None and spec.dims is not None and "..." not in [d for d in spec.dims if isinstance(d, str)]
        if not full and p.default is p.empty:
            return False
    return True
