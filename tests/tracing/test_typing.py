"""A user's annotations under mypy --strict, without any setting."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tessera as ts

pytest.importorskip("mypy")

PROGRAM = '''
    from __future__ import annotations

    import tessera as ts

    B, S, D = ts.sym("B S D")


    @ts.function(where=[D % 8 == 0])
    def attention(q: ts.Tensor[B, S, D, ts.bf16 @ ts.accum(ts.f32)], w: ts.Tensor["D", "3*D"],
                  m: ts.Tensor["?", 768]) -> ts.Tensor["...", "D"]:
        b, s, d = q.shape
        return ts.softmax((q @ w).reshape(b, s, -1), dim=-1) + m


    @ts.jit
    def step(x: ts.Tensor, n: int = 2) -> ts.Tensor:
        return x[0] * n + ts.zeros_like(x)


    x = ts.ones(2, 3)
    y = step(x) @ x.T
    print(float(y.sum()), x.dtype.name, x.reshape(3, 2)[0].tolist(), ts.random.uniform((2, 3)))
'''


@pytest.mark.slow
def test_annotations_pass_mypy(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    run = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"], cwd=tmp_path,
                         env={**os.environ, "MYPYPATH": str(Path(ts.__file__).parents[1])}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
