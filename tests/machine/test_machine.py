"""Machine descriptions: what is read from the system, and the questions code asks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.machine import AARCH64_NEON, X86_AMX, X86_AVX2, X86_AVX512, Cache, cpu_limit, host_cpu
from tessera.machine.cpu import AVX2_FEATURES, AVX512_FEATURES
from tessera.machine.host import ARM_FLAGS, X86_FLAGS, parse_cpuinfo, read_caches, x86_features, x86_tuning
from tessera.types.dtypes import bf16, f32, f64, int8, int32

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9B14
flags\t\t: fpu sse pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c abm bmi1 avx2 bmi2 AVX512

processor\t: 1
vendor_id\t: other
""".replace("AVX512", "avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16")


def test_the_first_processor_counts() -> None:
    info = parse_cpuinfo(CPUINFO)
    assert info["vendor_id"] == "AuthenticAMD" and info["model name"] == "AMD EPYC 9B14"
    features = x86_features(set(info["flags"].split()))
    assert set(features) == {*AVX512_FEATURES, "avx512bf16"}
    assert x86_tuning(info["vendor_id"], features) == "znver4"


def test_half_of_a_group_does_not_count() -> None:
    flags = set(parse_cpuinfo(CPUINFO)["flags"].split()) | {"amx_bf16"}
    assert set(x86_features(flags - {"avx512vl"})) == set(AVX2_FEATURES)
    assert "amx-bf16" not in x86_features(flags)
    assert x86_tuning("GenuineIntel", x86_features(flags - {"avx512vl"})) == "haswell"


def test_llvm_knows_every_feature_by_this_name() -> None:
    program = ("import llvmlite.binding as b; b.initialize_all_targets(); b.initialize_all_asmprinters(); import sys\n"
               "for triple, cpu, names in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):\n"
               "    b.Target.from_triple(triple).create_target_machine(cpu=cpu, features=names)\n")
    args = []
    for m, names in ((X86_AMX, X86_FLAGS.values()), (AARCH64_NEON, ARM_FLAGS.values())):
        args += [m.triple, m.cpu, ",".join("+" + n for n in names)]
    for m in (X86_AVX2, X86_AVX512, X86_AMX, AARCH64_NEON, host_cpu()):
        args += [m.triple, m.cpu, m.llvm_features, m.triple, m.tune, ""]
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=True)
    assert "not a recognized" not in done.stderr, done.stderr


def test_caches_from_a_folder(tmp_path: Path) -> None:
    entries = [(1, "Data", "48K", "0"), (1, "Instruction", "64K", "0"), (3, "Unified", "32M", "0-7,16-23")]
    for i, (level, kind, size, shared) in enumerate(entries):
        d = tmp_path / f"index{i}"
        d.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared), ("ways_of_associativity", 12),
                           ("coherency_line_size", 64)):
            (d / name).write_text(f"{text}\n")
    assert read_caches(str(tmp_path)) == (Cache(1, 49152, 12), Cache(3, 32 << 20, 12, 64, 16))
    assert read_caches(str(tmp_path / "none")) == ()


def test_the_host() -> None:
    m = host_cpu()
    assert m is host_cpu()
    assert 1 <= m.threads == cpu_limit()
    assert m.vector_bits in (128, 256, 512) and m.tile_lanes == m.vector_bits // 32
    assert [c.level for c in m.caches] == sorted(c.level for c in m.caches)


def test_the_host_is_read_without_llvm() -> None:
    code = "import sys, tessera.machine as m; m.host_cpu(); sys.exit('llvmlite' in sys.modules)"
    src = str(Path(__file__).parents[2] / "src")
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {src!r}); {code}"]).returncode == 0


@pytest.mark.parametrize("m", [X86_AVX2, X86_AVX512, X86_AMX, AARCH64_NEON], ids=lambda m: m.name)
def test_parameters(m) -> None:
    for d in (f32, f64, bf16):
        rows, vectors = m.product_tile
        assert rows * vectors + vectors + 1 <= m.registers
        assert m.reduction_lanes(d) % m.vector_lanes(f32 if d.bits < 32 else d) == 0
        assert m.reduction_split(d, along=True)[1] >= 4096
    assert m.key() != replace(m, features=m.features[1:]).key()


def test_matrix_instructions() -> None:
    assert X86_AVX512.matrix_instructions == ()
    amx = X86_AMX.product_instruction(bf16, bf16, f32)
    assert amx is not None and (amx.name, amx.m, amx.n, amx.k) == ("amx_bf16", 16, 16, 32)
    integers = X86_AMX.product_instruction(int8, int8, int32)
    assert integers is not None and integers.name == "amx_int8"
    without = replace(X86_AVX512, features=(*AVX512_FEATURES, "avx512bf16"))
    assert without.product_instruction(bf16, bf16, f32) is None  # half rate on Intel's cores
    pairs = replace(without, tune="znver4").product_instruction(bf16, bf16, f32)
    assert pairs is not None and pairs.name == "dpbf16"
    assert X86_AMX.product_instruction(f32, f32, f32) is None
