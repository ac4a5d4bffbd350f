"""The house: rooms import only from rooms above them; nothing heavy is loaded by ``import tessera``."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tessera"
ROOMS = ["types", "errors", "machine", "ir", "tracing", "ops", "transforms", "scheduling", "tiling", "kernels", "targets", "runtime"]


def imported_rooms(path: Path):
    """(line, room) of every import of a room; imports inside functions count too, those for type checkers do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["tessera", *path.relative_to(SRC).parent.parts]
    typing_only = {id(n) for t in ast.walk(tree) if isinstance(t, ast.If) and ast.unparse(t.test) == "TYPE_CHECKING" for n in ast.walk(t)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            target = base + (node.module.split(".") if node.module else [])
            names = [[*target, a.name] for a in node.names] if target == ["tessera"] else [target]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
        else:
            continue
        for parts in names:
            if len(parts) > 1 and parts[0] == "tessera" and parts[1] in ROOMS:
                yield node.lineno, parts[1]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_upwards_only(room):
    wrong = [f"{path.relative_to(SRC)}:{line} imports {other}"
             for path in (SRC / room).rglob("*.py") for line, other in imported_rooms(path) if ROOMS.index(other) > ROOMS.index(room)]
    assert not wrong, "\n".join(wrong)


def test_import_is_light():
    """``import tessera`` loads neither LLVM nor the console library; they come with the first compilation."""
    code = "import sys, tessera; print(sorted(m for m in ('llvmlite', 'rich', 'torch', 'jax', 'mpmath', 'scipy') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
