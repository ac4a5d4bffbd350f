"""The IR in the documentation is real: every ```graph, ```sched and ```tile block parses, passes its grammar and prints back."""

import re
from pathlib import Path

import pytest

import tessera  # noqa: F401  (fills the op table)
from tessera.ir import graph, sched, tile
from tessera.ir.text import parse_functions, print_function

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(graph|sched|tile)\n(.*?)^```", re.S | re.M)
BLOCKS = [(page.name, m.group(1), m.group(2)) for page in sorted(DOCS.rglob("*.md")) for m in BLOCK.finditer(page.read_text("utf-8"))]
VERIFY = {"graph": graph.verify, "sched": sched.verify, "tile": tile.verify}


@pytest.mark.parametrize(("page", "level", "text"), BLOCKS, ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(BLOCKS)])
def test_block(page, level, text):
    functions = parse_functions(text)
    assert functions
    for fn in functions:
        assert fn.level == level
        VERIFY[level](fn)
    assert "\n".join(print_function(f) for f in functions) == text.strip()


def test_every_level_is_shown():
    assert {level for _, level, _ in BLOCKS} == {"graph", "sched", "tile"}
