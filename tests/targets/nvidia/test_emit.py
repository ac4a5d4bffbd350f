"""Kernels of the explicit level as PTX: a PTX assembler, where one is at hand, finds nothing slow in them."""

import re
import shutil
import subprocess

import pytest

import tessera as ts
from tessera.errors import CompileError
from tessera.ir.core import Block, BufferType, Op
from tessera.kernels.hopper import attention, matmul
from tessera.kernels.hopper.select import explicit_program
from tessera.kernels.rows import row_program
from tessera.machine import NVIDIA_SM80, NVIDIA_SM90
from tessera.runtime.llvm_workers import Request, workers
from tessera.scheduling import schedule
from tessera.targets.nvidia import kernels
from tessera.targets.nvidia.emit import TensorMap
from tessera.tiling import dsl
from tessera.tiling import explicit as x
from tessera.transforms.pipeline import optimize
from tessera.types.dims import name
from tessera.types.dtypes import bf16, f32

M, N, K, H, S, T = (name(c) for c in "MNKHST")


def ptx(fn, machine=NVIDIA_SM90):
    module = kernels.lower(fn, machine)
    text = workers().compile(Request(module.text, machine.triple, machine.cpu, machine.llvm_features, "asm", name=fn.name)).decode()
    return module, text


def assemble(text, tmp_path, cpu="sm_90a"):
    """The assembler's report."""
    if shutil.which("ptxas") is None:
        pytest.skip("no PTX assembler here")
    source = tmp_path / "k.ptx"
    source.write_text(text)
    done = subprocess.run(["ptxas", f"-arch={cpu}", "-v", str(source), "-o", str(tmp_path / "k.cubin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("transposed", [True, False])
def test_product(transposed, tmp_path):
    module, text = ptx(matmul.matmul_program(M, N, K, transposed=transposed))
    assert module.threads == 384 and module.cluster == 2 and module.shared <= 232448
    assert module.maps[0] == TensorMap(0, (128, 64), 128) and len(module.maps) == 3
    assert text.count("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16") == 4
    assert "setmaxnreg.inc.sync.aligned.u32 \t232" in text or re.search(r"setmaxnreg\.inc\.sync\.aligned\.u32\s+232", text)
    assert "multicast::cluster" in text and "stmatrix" in text
    assert not kernels.complaints(assemble(text, tmp_path))


@pytest.mark.parametrize("after", ["nothing", "gelu", "silu"])
def test_products_and_what_follows_spill_nothing(after, tmp_path):
    x, w, b = ts.Tensor[4096, 1024, ts.bf16], ts.Tensor[1024, 4096, ts.bf16], ts.Tensor[4096, ts.bf16]
    graph = ts.jit(lambda x, w, b: x @ w if after == "nothing" else getattr(ts, after)(x @ w + b)).trace(x, w, b)
    (op,) = (o for o in schedule(optimize(graph, NVIDIA_SM90), NVIDIA_SM90).body.ops if o.name == "template")
    _, text = ptx(explicit_program(op, NVIDIA_SM90, {}))
    assert not kernels.complaints(assemble(text, tmp_path))
    assert ("ex2.approx" in text) == (after != "nothing")


@pytest.mark.parametrize("width, causal, groups", [(128, False, 2), (128, True, 2), (64, False, 3), (64, True, 3), (64, True, 2)])
def test_attention(width, causal, groups, tmp_path):
    fn = attention.attention_program(H, S, S if causal else T, width, causal=causal, config=attention.Config(groups=groups))
    module, text = ptx(fn)
    assert module.threads == 128 * (groups + 1)
    assert "ex2.approx.ftz.f32" in text
    assert not kernels.complaints(assemble(text, tmp_path))


@pytest.mark.parametrize("form, width", [("bool", 128), ("added", 128), ("offset", 64), ("plain", 256), ("plain", 96)])
def test_forms_of_attention_spill_nothing(form, width, tmp_path):
    q, k = ts.Tensor[2, 8, 1024, width, ts.bf16], ts.Tensor[2, 8, 4096, width, ts.bf16]
    mask = {"bool": [ts.Tensor[1024, 4096, ts.bool_]], "added": [ts.Tensor[2, 1, 1024, 4096, ts.bf16]]}.get(form, [])
    graph = ts.jit(lambda *x: ts.attention(*x, causal=form == "offset")).trace(q, k, k, *mask)
    (op,) = (o for o in schedule(optimize(graph, NVIDIA_SM90), NVIDIA_SM90).body.ops if o.name == "template")
    module, text = ptx(explicit_program(op, NVIDIA_SM90, {}))
    assert module.explicit and module.shared <= 232448
    assert not kernels.complaints(assemble(text, tmp_path))


@pytest.mark.parametrize("op, n, machine", [("softmax", 4096, NVIDIA_SM90), ("layer_norm", 1000, NVIDIA_SM90),
                                            ("rms_norm", 40000, NVIDIA_SM80)])
def test_rows(op, n, machine, tmp_path):
    block = Block([BufferType(bf16, (M, n)), BufferType(bf16, (M, n))])
    fn = row_program(Op("template", block.args, (), {"template": "row", "op": op, "axis": -1, "eps": 1e-5, "outs": (1,)}), 32, {"M": 5})
    _, text = ptx(fn, machine)
    assert "ld.global.v4" in text and "st.global.v4" in text
    assert not kernels.complaints(assemble(text, tmp_path, machine.cpu))


def copies(a, c):
    box = x.alloc_tiles(64, 64, dtype=bf16)
    with x.role():
        x.copy_async(box, a, (0, 0))
        x.copy_commit()
        x.copy_wait()
        x.barrier_sync(1, 128)
        dsl.store(c, (0, 0), box.load().to(f32))


def small(body):
    return dsl.build(dsl.TileProgram("small", [("a", BufferType(bf16, (M, 64))), ("c", BufferType(f32, (M, 64)))], ["M"]),
                     dsl.tile_function(body))


def test_copies_of_threads(tmp_path):
    _, text = ptx(small(copies))
    assert text.count("cp.async.cg.shared.global") == 4 and "ldmatrix" in text
    assert not kernels.complaints(assemble(text, tmp_path))


def test_machines_without_warp_groups_say_so():
    with pytest.raises(CompileError, match=r"sm_80\) has no warp-group matrix unit"):
        kernels.lower(small(copies), NVIDIA_SM80)


def test_what_roles_cannot_do_is_told():
    def across(a, c):
        with x.role():
            t = dsl.load(a, (0, 0), (64, 64)).to(f32)
            dsl.store(c, (0, 0), dsl.sum(t, 0))
    with pytest.raises(CompileError, match="would pass elements between the threads of a role through memory"):
        kernels.lower(small(across), NVIDIA_SM90)


def test_complaints_are_read_off_the_assemblers_report():
    good = "ptxas info : 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    bad = "ptxas info : (C7508) Potential Performance Loss: 'setmaxnreg' ignored"
    assert kernels.complaints(good) == []
    assert len(kernels.complaints(f"{good}\n{bad}\n 24 bytes stack frame, 20 bytes spill stores, 40 bytes spill loads")) == 2


def test_a_guarded_vector_stays_at_a_multiple_of_its_size():
    """Lanes outside read the buffer's last vector, not its last element."""
    block = Block([BufferType(f32, (M, 100)), BufferType(f32, (M, 100))])
    module = kernels.lower(row_program(Op("template", block.args, (), {"template": "row", "op": "softmax", "axis": -1, "outs": (1,)}), 32,
                                       {"M": 5}), NVIDIA_SM90)
    assert "load <4 x float>" in module.text
    assert re.search(r"sub i64 %v\d+, 4\n", module.text) and not re.search(r"sub i64 %v\d+, 1\n", module.text)
