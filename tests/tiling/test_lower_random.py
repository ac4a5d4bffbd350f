"""Random kernels: permuted, broadcast, strided and reversed operands, reductions over any axes; bit-equal both ways."""

from __future__ import annotations

import itertools
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lowering import check

from tessera.machine import cpu


def kernel(rng: random.Random) -> tuple[str, list[np.ndarray], dict[str, int]]:
    """A kernel over up to four loops, some of which are reduced; sizes may be symbolic."""
    loops = [f"i{k}" for k in range(rng.randint(1, 4))]
    extents = dict.fromkeys(loops, 0)
    while not 0 < math.prod(extents.values()) <= 3000:
        extents = {n: rng.choice([1, 2, 3, 5, 8, 16, 17, 33, 70]) for n in loops}
    names = {n: f"S{k}" if rng.random() < 0.3 else str(extents[n]) for k, n in enumerate(loops)}
    sizes = {names[n]: extents[n] for n in loops if names[n].startswith("S")}
    reduced = [n for n in loops if rng.random() < 0.3]
    grid = [n for n in loops if n not in reduced]
    rng.shuffle(reduced)
    arrays, types, body = [], [], []
    data = np.random.default_rng(rng.randrange(1 << 30))
    for k in range(rng.randint(1, 3)):
        axes = [n for n in loops if rng.random() < 0.75]
        rng.shuffle(axes)
        shape, text, index = [], [], []
        for n in axes:
            step, flip = rng.choice([1, 1, 1, 2]), rng.random() < 0.2
            shape.append(extents[n] * step)
            text.append(f"{step}*{names[n]}" if step > 1 else names[n])
            index.append(f"<{names[n]}*{step}-1-{step}*{n}>" if flip else f"<{step}*{n}>")
        arrays.append(data.standard_normal(shape).astype(np.float32))
        types.append(f"buf<f32[{', '.join(text)}]>")
        at = f"({', '.join(index)},)" if index else "()"
        body.append(f"%v{k} = load(%a{k}) {{index = {at}}} : f32")
    total = "%v0"
    for k in range(1, len(arrays)):
        body.append(f"%s{k} = {rng.choice(['add', 'mul', 'maximum', 'sub'])}({total}, %v{k}) : f32")
        total = f"%s{k}"
    if reduced:
        over = ", ".join(f'("{n}", <{names[n]}>)' for n in reduced)
        combine, lanes = rng.choice(["add", "max", "min"]), rng.choice([1, 1, 4, 16, 64])
        inner = "\n".join([*body, f"yield({total})"])
        body = [f'%r = reduce() {{over = ({over},), combine = "{combine}", lanes = {lanes}}} do() {{ {inner} }} : f32']
        total = "%r"
    out = list(grid)
    rng.shuffle(out)
    types.append(f"buf<f32[{', '.join(names[n] for n in out)}]>")
    arrays.append(np.zeros([extents[n] for n in out], np.float32))
    at = f"({', '.join(f'<{n}>' for n in out)},)" if out else "()"
    body.append(f"store(%a{len(arrays) - 1}, {total}) {{index = {at}}}")
    params = ", ".join(f"%x{i}: {t}" for i, t in enumerate(types))
    args = ", ".join(f"%a{i}: {t}" for i, t in enumerate(types))
    loops_text = ", ".join(f'("{n}", <{names[n]}>)' for n in grid)
    listed = "".join(f'"{s}", ' for s in sizes)
    text = (f"sched @f({params}) with {{sizes = ({listed})}} {{\n kernel({', '.join(f'%x{i}' for i in range(len(types)))}) "
            f"{{grid = ({loops_text}{',' if grid else ''}), outs = ({len(types) - 1},)}} do({args}) {{\n" + "\n".join(body)
            + "\nyield()\n }\n return()\n}")
    return text, arrays, sizes


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_kernels(first: int) -> None:
    machines = itertools.cycle((cpu.X86_AVX512, cpu.X86_AVX2, cpu.AARCH64_NEON))
    for seed in range(first, first + 10):
        text, arrays, sizes = kernel(random.Random(seed))
        check(text, arrays, sizes, machines=(next(machines),))
