"""``tessera show FILE:FUNCTION``: a function at any stage of its compilation."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..errors import TesseraError, suggest
from ..runtime import stages
from .load import LoadFailed, functions_of, is_kernel, kernel_types, load_file, say_error

STAGES = (*(s.name for s in stages.STAGES if s.name != "o"), "asm")
_LANGUAGE = {"ll": "llvm", "asm": "nasm"}


def targets() -> dict[str, Any]:
    """The machines that ``--target`` names."""
    from ..machine import BY_NAME
    return {"host": None, **BY_NAME}


def add_parser(sub: Any) -> None:
    p: argparse.ArgumentParser = sub.add_parser("show", help="print a function at a stage of its compilation")
    p.add_argument("what", metavar="FILE:FUNCTION", help="a traced function or a kernel in a Python file")
    p.add_argument("--stage", choices=STAGES, default="graph", help="what to print (default: graph)")
    p.add_argument("--target", default="host", metavar="NAME",
                   help="the machine to compile for: " + ", ".join(targets()) + " (default: host)")
    p.add_argument("--args", default=None, metavar="TYPES",
                   help="argument types such as 'f32[32, 768], f32[768, H]'; needed where annotations do not give them")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    file, colon, name = args.what.rpartition(":")
    if not colon or not file:
        say_error(f"{args.what!r} does not name a function: write FILE:FUNCTION, such as model.py:mlp")
        return 2
    machines = targets()
    if args.target not in machines:
        say_error(f"there is no target {args.target!r}{suggest(args.target, machines)}; the targets are {', '.join(machines)}")
        return 2
    try:
        functions = functions_of(load_file(file))
        if name not in functions:
            known = ", ".join(functions) or "none"
            say_error(f"{file!r} defines no traced function or kernel {name!r}{suggest(name, functions)} (it defines: {known})")
            return 1
        text = stage_text(functions[name], args.stage, machines[args.target], args.args)
    except LoadFailed as e:
        say_error(str(e))
        return 1
    except (TesseraError, ValueError) as e:
        say_error(str(e))
        return 1
    _print(text, args.stage)
    return 0


def stage_text(fn: Any, stage: str, machine: Any, types: str | None) -> str:
    """The text of a traced function at a stage; a kernel begins at ``tile``.

    Raises:
        TesseraError: the function cannot be traced or compiled.
        ValueError: ``types`` are not tensor types.
    """
    from ..runtime.compiler import Compiler
    if is_kernel(fn):
        return Compiler(machine).show(_tile_function(fn, types), "tile" if stage == "graph" else stage)
    graph = fn.trace(*parse_types(types)) if types is not None else fn.trace()
    return Compiler(machine).show(graph, stage)


def _tile_function(kernel: Any, types: str | None) -> Any:
    """A kernel for the given types, else for the declared ones."""
    args = kernel_types(kernel) if types is None else dict(zip(kernel.declared.names, parse_types(types), strict=False))
    if args is None:
        raise ValueError("some parameters have no full tile type: give the argument types with --args")
    return kernel.build(args).function


def parse_types(text: str) -> list[Any]:
    """``"f32[32, 768], f32[H]"`` as tensor types."""
    from ..ir.core import TensorType
    from ..ir.text import parse_function
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text + ","):
        depth += {"[": 1, "]": -1}.get(c, 0)
        if c == "," and depth == 0:
            if text[start:i].strip():
                parts.append(text[start:i].strip())
            start = i + 1
    params = ", ".join(f"%a{i}: {t}" for i, t in enumerate(parts))
    found = [a.type for a in parse_function(f"graph @f({params}) {{ return() }}").args]
    for t in found:
        if not isinstance(t, TensorType):
            raise ValueError(f"{t} is not a tensor type; a scalar is written {t}[]")
    return found


def _print(text: str, stage: str) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax
        Console().print(Syntax(text, _LANGUAGE.get(stage, "text"), word_wrap=False, background_color="default"))
    else:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
