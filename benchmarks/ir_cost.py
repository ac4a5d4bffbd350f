"""What an op costs: Tessera's SSA core beside xDSL, in one process (``pip install xdsl`` for the peer's column).

Prints JSON: microseconds an op to build and to check, and milliseconds to import.  See docs/decisions.md.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

N, ROUNDS = 4000, 5


def per_op(work: Callable[[], object]) -> float:
    """Median microseconds an op over interleaved rounds of ``N`` ops."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / N * 1e6)
    return round(statistics.median(times), 2)


def import_ms(module: str) -> float:
    """Median milliseconds to import ``module`` where numpy is loaded already, each time in a fresh process."""
    code = f"import numpy, time; t = time.perf_counter(); import {module}; print((time.perf_counter() - t) * 1e3)"
    runs = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    return round(statistics.median(runs), 1)


def tessera_costs() -> dict[str, float]:
    import tessera.ops  # noqa: F401  (fills the rules that the grammar asks)
    from tessera.ir.core import Block, Builder, Function, TensorType
    from tessera.ir.graph import verify
    from tessera.ir.text import parse_function, print_function
    from tessera.types.dtypes import f32

    t = TensorType(f32, (4, 8))

    def build() -> Function:
        fn = Function("f", "graph", Block([t, t]))
        b = Builder(fn.body)
        v = fn.args[0]
        for _ in range(N):
            v = b.value("add", [v, fn.args[1]], t)
        b.op("return", [v])
        return fn

    fn = build()
    text = print_function(fn)
    return {"import_ms": import_ms("tessera.ir.core"), "build_us": per_op(build), "verify_us": per_op(lambda: verify(fn)),
            "print_us": per_op(lambda: print_function(fn)), "parse_us": per_op(lambda: parse_function(text))}


def xdsl_costs() -> dict[str, float]:
    from io import StringIO

    from xdsl.context import Context
    from xdsl.dialects import arith, builtin, test
    from xdsl.ir import Block, Region
    from xdsl.parser import Parser
    from xdsl.printer import Printer

    t = builtin.TensorType(builtin.f32, [4, 8])

    def build() -> builtin.ModuleOp:
        source = test.TestOp(result_types=[t, t])
        block = Block([source])
        v = source.results[0]
        for _ in range(N):
            op = arith.AddfOp(v, source.results[1])
            block.add_op(op)
            v = op.results[0]
        return builtin.ModuleOp(Region(block))

    module = build()

    def text() -> str:
        out = StringIO()
        Printer(out).print_op(module)
        return out.getvalue()

    printed = text()

    def parse() -> None:
        context = Context()
        for dialect in (builtin.Builtin, arith.Arith, test.Test):
            context.load_dialect(dialect)
        Parser(context, printed).parse_module()

    return {"import_ms": import_ms("xdsl.dialects.arith"), "build_us": per_op(build), "verify_us": per_op(module.verify),
            "print_us": per_op(text), "parse_us": per_op(parse)}


def main() -> None:
    result: dict[str, object] = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    result["tessera"] = tessera_costs()
    try:
        import xdsl
        result["xdsl"] = {"version": xdsl.__version__, **xdsl_costs()}
    except ImportError:
        result["xdsl"] = "not installed"
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
