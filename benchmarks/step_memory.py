"""The GPT-2 small training step (B1 S256) in a process of its own: ``python step_memory.py plain|checkpoint|selective``.

Prints JSON: seconds of tracing with differentiation, and of the whole first call; the arena of the memory plan (temporaries that
live at once), and by how much the process grew beyond its weights.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from transform_cases import CASES

import tessera as ts
from tessera.models import GPT2Model


class Checkpointed(GPT2Model):
    """Each block's inner values are computed again in the backward pass."""

    policy = "full"

    def states(self, ids: ts.Tensor) -> tuple[ts.Tensor, list[Any]]:
        x = self.wte(ids) + self.wpe(ts.arange(ids.shape[1]))
        for block in self.blocks:
            x = ts.checkpoint(lambda x, block=block: block(x)[0], policy=self.policy)(x)
        return x, []


def loss(model: Any, ids: ts.Tensor, targets: ts.Tensor) -> ts.Tensor:
    return ts.cross_entropy(model(ids), targets).mean()


def resident(what: str) -> int:
    """Bytes of the process in memory: VmRSS now, VmHWM at most since the last reset."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(kind: str) -> None:
    if kind not in ("plain", "checkpoint", "selective"):
        sys.exit(__doc__)
    a = CASES["gpt2_grad"].inputs()
    model = (GPT2Model if kind == "plain" else Checkpointed).from_state(a.pop("config"), a.pop("weights"))
    model.policy = "selective" if kind == "selective" else "full"
    ids, targets = ts.from_numpy(a["ids"]), ts.from_numpy(a["targets"])
    warm = ts.value_and_grad(lambda x: (x * x).sum())
    warm(ts.ones(4))                                             # imports and the compiler's workers are not the step's
    reset_peak()
    step, before = ts.value_and_grad(loss), resident("VmRSS")
    start = time.perf_counter()
    step.trace(model, ids, targets)
    traced = time.perf_counter() - start
    start = time.perf_counter()
    value, _ = step(model, ids, targets)
    first = time.perf_counter() - start
    times = []
    for _ in range(3):
        start = time.perf_counter()
        step(model, ids, targets)
        times.append(time.perf_counter() - start)
    arena = max(int(x) for x in re.findall(r"arena = (\d+)", str(step.schedule_ir)))
    print(json.dumps({"loss": float(value), "trace_s": round(traced, 4), "first_call_s": round(first, 3), "step_s": round(min(times), 4),
                      "arena_bytes": arena, "grown_bytes": resident("VmHWM") - before,
                      "gradients_bytes": sum(t.dtype.itemsize * int(np.prod(t.shape)) for t in model.parameters())}))


if __name__ == "__main__":
    main(sys.argv[1])
