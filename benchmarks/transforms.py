"""Derivatives, batching and loops beside jax and torch on this CPU: ``python benchmarks/transforms.py [--cases a,b] [--peers jax,torch]``.

Measured as ``benchmarks/cpu.py`` does (a process a peer, interleaved rounds, tuned peers too).  Then, in processes of their own:
what tracing and differentiating the GPT-2 step takes, and its peak memory with and without checkpointing, as the memory plan says
and as the system saw it (``--no-memory`` leaves this out).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpu
from transform_cases import CASES

PEERS = ("jax", "torch", "inductor")


def memory(threads: int) -> dict[str, Any]:
    """The GPT-2 step's trace time and memory, with and without checkpointing."""
    out = {}
    for kept in ("plain", "checkpoint"):
        env = {**os.environ, "TESSERA_THREADS": str(threads)}
        script = str(Path(__file__).with_name("step_memory.py"))
        done = subprocess.run([sys.executable, script, kept], capture_output=True, text=True, env=env, check=False)
        out[kept] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-2000:]}
        print(f"GPT-2 step, {kept}: {json.dumps(out[kept])}", flush=True)
    return out


def main() -> int:
    parser = cpu.options(__doc__.splitlines()[0], CASES, PEERS)
    parser.add_argument("--no-memory", action="store_true", help="leave the trace time and memory of the GPT-2 step out")
    report, out = cpu.compete(parser, "transforms", CASES, "transform_peers.py")
    args = parser.parse_args()
    if not args.no_memory:
        report["gpt2_step"] = memory(args.threads)
        out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
