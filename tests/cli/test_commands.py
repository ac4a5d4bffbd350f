"""The command line as a user meets it: in processes of its own, piped."""

import json
import os
import subprocess
import sys

import pytest

from tessera.cli import main
from tessera.cli.info import DISTRIBUTION, owner_warning
from tessera.cli.show import parse_types

MODEL = '''
import tessera as ts

@ts.function
def affine(x: ts.Tensor["B", 16], y: ts.Tensor[16]) -> ts.Tensor["B", 16]:
    return x * y + 1.0

@ts.jit
def free(x):
    return ts.exp(x)

@ts.kernel
def add(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
    ts.tile.store(C, A + B)

@ts.kernel
def open_add(A: ts.Tile, B: ts.Tile, C: ts.Tile):
    ts.tile.store(C, A + B)

if __name__ == "__main__":
    raise SystemExit("the file was run")
'''
WRONG = MODEL + '''
@ts.function
def wrong(x: ts.Tensor["B", 16], y: ts.Tensor["B", 15]):
    return x + y

@ts.function
def mixed(x: ts.Tensor["N", ts.int32], y: ts.Tensor["N", ts.uint64]):
    return x + y
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))


def run(*args, **kw):
    return subprocess.run([sys.executable, "-m", "tessera", *map(str, args)], capture_output=True, text=True, timeout=60,
                          env=dict(os.environ), **kw)


STARTS = {"graph": "graph @affine(%x: f32[B, 16]", "sched": "sched @affine(", "tile": "tile @", "ll": "; ==== module ",
          "asm": "# ==== module "}


@pytest.mark.parametrize("stage", STARTS)
def test_show(file, stage, capsys):
    assert main(["show", f"{file}:affine", "--stage", stage]) == 0
    out = capsys.readouterr()
    assert out.out.startswith(STARTS[stage]) and not out.err
    assert "\x1b" not in out.out


def test_show_a_kernel(file, capsys):
    assert main(["show", f"{file}:add"]) == 0
    assert capsys.readouterr().out.startswith("tile @add")
    assert main(["show", f"{file}:open_add", "--args", "f64[N], f64[N], f64[N]", "--stage", "asm", "--target", "avx2"]) == 0
    assert "vaddpd" in capsys.readouterr().out
    assert main(["show", f"{file}:open_add"]) == 1
    assert "--args" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "instruction"), [("avx2", "ymm"), ("avx512", "zmm"), ("neon", "fmul\tv")])
def test_show_for_other_machines(file, capsys, target, instruction):
    assert main(["show", f"{file}:affine", "--stage", "asm", "--target", target]) == 0
    assert instruction in capsys.readouterr().out


def test_show_with_argument_types(file, capsys):
    assert main(["show", f"{file}:free", "--args", "f32[2, N]"]) == 0
    assert "graph @free(%x: f32[2, N])" in capsys.readouterr().out


@pytest.mark.parametrize(("args", "status", "message"), [
    (["show", "{file}:afine"], 1, "did you mean 'affine'"),
    (["show", "{file}"], 2, "FILE:FUNCTION"),
    (["show", "{file}.absent:f"], 1, "there is no file"),
    (["show", "{file}:free"], 1, "has no full tensor type"),
    (["show", "{file}:affine", "--target", "avx51"], 2, "did you mean 'avx512'"),
    (["show", "{file}:free", "--args", "f33[2]"], 1, "no dtype is called 'f33'"),
    (["show", "{file}:free", "--args", "f32"], 1, "not a tensor type"),
])
def test_show_refuses(file, args, status, message, capsys):
    assert main([a.format(file=file) for a in args]) == status
    assert message in capsys.readouterr().err


def test_show_in_a_process_and_into_a_closed_pipe(file):
    out = run("show", f"{file}:affine", "--stage", "sched")
    assert out.returncode == 0 and out.stdout.startswith("sched @affine(") and not out.stderr
    closed = subprocess.run(f"{sys.executable} -m tessera show {file}:affine --stage asm | head -1", shell=True,
                            capture_output=True, text=True, timeout=60)
    assert "Traceback" not in closed.stderr


def test_check_finds_errors_without_running(tmp_path, capsys):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "affine: ok (f32[B, 16], f32[16]) -> f32[B, 16]" in out
    assert "free: skipped" in out and "open_add: skipped" in out
    assert "add: ok kernel of buf<f32[N]>" in out
    assert "Cannot broadcast 16 with 15" in out and "# ← Error here" in out
    assert "Cannot implicitly convert between int32 and uint64" in out


def test_check_a_good_file(file, capsys):
    assert main(["check", str(file)]) == 0
    assert "the file was run" not in capsys.readouterr().out


@pytest.mark.parametrize(("text", "message"), [
    ("import absent_module_x", "No module named"), ("def f(:", "SyntaxError"), ("raise SystemExit(4)", "SystemExit"),
    ("x = 1", "no traced functions"),
])
def test_check_unusable_files(tmp_path, text, message, capsys):
    path = tmp_path / "bad.py"
    path.write_text(text)
    main(["check", str(path)])
    out = capsys.readouterr()
    assert message in out.out + out.err
    assert "tessera/cli" not in out.err


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "numpy" in out and "vectors" in out and "compile cache" in out


def test_info_as_json():
    facts = json.loads(run("info", "--json").stdout)
    assert facts["devices"][0]["kind"] == "cpu" and facts["packages"]["llvmlite"]
    assert facts["settings"]["TESSERA_CACHE"] == os.environ["TESSERA_CACHE"]


def test_a_stranger_of_the_same_name():
    assert owner_warning([]) is None and owner_warning([DISTRIBUTION, DISTRIBUTION]) is None
    assert "tessera-ml" in owner_warning([DISTRIBUTION, "tessera-ml"])


def test_cache(file, capsys, monkeypatch):
    import tessera as ts
    from tessera.runtime.compiler import Compiler
    ts.Tensor  # noqa: B018
    from tessera.ir.text import parse_function
    Compiler().compile(parse_function("graph @f(%x: f32[4]) {\n  %0 = neg(%x) : f32[4]\n  return(%0)\n}"))
    assert main(["cache"]) == 0
    assert "programs: 1 files" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert "deleted" in capsys.readouterr().out
    assert main(["cache", "info"]) == 0
    assert "programs: 0 files" in capsys.readouterr().out
    monkeypatch.setenv("TESSERA_CACHE", "off")
    assert main(["cache"]) == 0
    assert "off" in capsys.readouterr().out


def test_usage():
    assert run().returncode == 2
    assert run("--version").stdout.startswith("tessera 0.")


def test_an_impossible_setting(monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE_LIMIT", "much")
    out = run("cache")
    assert out.returncode == 1 and "TESSERA_CACHE_LIMIT is 'much'" in out.stderr and "Traceback" not in out.stderr


def test_parse_types():
    assert [str(t) for t in parse_types("f32[32, 768], bf16[768, 3*H], int64[]")] == ["f32[32, 768]", "bf16[768, 3*H]", "int64[]"]
    assert parse_types("") == []
