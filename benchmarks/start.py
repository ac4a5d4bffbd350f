"""What starting costs: import, first calls with a cold and a warm disk cache, and calls of tiny programs.

    python benchmarks/start.py [--rounds 3] [--out FILE]

Each figure comes from fresh processes; the cache is a directory of its own.  Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu import machine

IMPORT = "import time; t = time.perf_counter(); import tessera; print((time.perf_counter() - t) * 1e3)"

GPT2 = """
import statistics, time
import numpy as np, tessera as ts
from tessera import nn
from tessera.models import GPT2Model
with nn.uninitialized():
    model = GPT2Model()
program, ids = ts.jit(model), ts.from_numpy(np.zeros((1, 512), np.int64))
def call():
    start = time.perf_counter()
    program(ids)
    return time.perf_counter() - start
first = call()
print(first - statistics.median(call() for _ in range(5)))
"""

TINY = """
import json, timeit
import tessera as ts
x = ts.ones(16)
f = ts.jit(lambda a: (a * 2 + 1).sum())
calls = {"jitted": lambda: f(x), "add": lambda: x + x, "exp": lambda: ts.exp(x), "sum": lambda: x.sum()}
out = {}
for name, call in calls.items():
    call()
    out[name] = min(timeit.repeat(call, number=2000, repeat=5)) / 2000 * 1e6
print(json.dumps(out))
"""


def run(code: str, cache: str) -> str:
    """What a fresh process prints."""
    env = {**os.environ, "TESSERA_CACHE": cache}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="JSON file, beside what is printed")
    args = parser.parse_args()
    rounds = args.rounds
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as shared:
        run(IMPORT, shared)
        imports = [float(run(IMPORT, shared)) for _ in range(rounds)]
        tiny = json.loads(run(TINY, shared))
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(float(run(GPT2, cache)))
                warm.append(float(run(GPT2, cache)))
    report = json.dumps({
        "machine": machine(sorted(os.sched_getaffinity(0))),
        "import_ms": round(statistics.median(imports), 1), "call_us": {k: round(v, 2) for k, v in tiny.items()},
        "gpt2_first_call_beyond_steady_s": {"cold": round(statistics.median(cold), 2), "warm": round(statistics.median(warm), 2)},
    }, indent=1)
    print(report)
    if args.out is not None:
        args.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
