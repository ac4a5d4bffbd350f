"""The object loader: linking, externals, protection, and what it refuses."""

import ctypes
import struct
from pathlib import Path

import pytest
from native_harness import compile_ir

from tessera.errors import CompileError
from tessera.machine import host_cpu
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu import elf
from tessera.targets.cpu.loader import load

X86 = host_cpu().triple.startswith("x86_64")

CALLER = """
declare i32 @g(i32)
@table = global [4 x i32] [i32 1, i32 2, i32 3, i32 4]
@pointer = global ptr @table
define i32 @f(i32 %a) {
  %c = call i32 @g(i32 %a)
  %t = load ptr, ptr @pointer
  %q = getelementptr i32, ptr %t, i64 2
  %v = load i32, ptr %q
  %b = add i32 %c, %v
  ret i32 %b
}"""
CALLEE = """
@zeros = internal global [64 x i32] zeroinitializer
declare i64 @syscall(i64, ...)
declare ptr @memset(ptr, i32, i64)
define i32 @g(i32 %a) {
  %f = sitofp i32 %a to double
  %m = fmul double %f, 3.140625
  %r = fptosi double %m to i32
  ret i32 %r
}
define i32 @fill(i32 %v) {
  %p = call ptr @memset(ptr @zeros, i32 %v, i64 256)
  %x = load i32, ptr @zeros
  ret i32 %x
}"""
INT = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32)


def test_two_objects_are_linked():
    image = load([compile_ir(CALLER), compile_ir(CALLEE)])
    assert image.function("f", INT)(10) == 31 + 3
    assert image.function("fill", INT)(0x01) == 0x01010101


def test_externals_come_from_the_table():
    callback = INT(lambda x: x * 100)
    image = load([compile_ir(CALLER)], {"g": ctypes.cast(callback, ctypes.c_void_p).value})
    assert image.function("f", INT)(5) == 503


def test_symbols_of_two_images_do_not_mix():
    with pytest.raises(CompileError, match="'g', which nothing defines"):
        load([compile_ir(CALLER)])


def test_a_symbol_defined_twice():
    with pytest.raises(CompileError, match="'g' is defined twice"):
        load([compile_ir(CALLEE), compile_ir("define i32 @g(i32 %a) { ret i32 0 }")])


def test_memory_is_never_writable_and_executable():
    image = load([compile_ir(CALLER), compile_ir(CALLEE)])
    modes = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode = line.split()[:2]
        low, high = (int(x, 16) for x in span.split("-"))
        if low < image.base + image.size and high > image.base:
            modes[max(low, image.base)] = mode[:3]
    assert set(modes.values()) == {"r-x", "r--", "rw-"}
    assert "rwx" not in modes.values()


def test_closing_twice_is_harmless():
    image = load([compile_ir(CALLEE)])
    image.close()
    image.close()


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"not an object file" * 10])
def test_rubbish_is_refused(damage):
    with pytest.raises(CompileError):
        load([damage])


@pytest.mark.parametrize("keep", [64, 100, 200, 400, 700])
def test_cut_off_objects_are_refused(keep):
    code = compile_ir(CALLER)
    assert keep < len(code)
    with pytest.raises(CompileError, match=r"damaged|not a relocatable"):
        load([code[:keep]])


def test_an_object_for_another_machine():
    other = Request("define void @f() { ret void }", "aarch64-unknown-linux-gnu" if X86 else "x86_64-unknown-linux-gnu",
                    "generic" if X86 else "x86-64", "")
    with pytest.raises(CompileError, match="which is not this machine"):
        load([workers().compile(other)])


def patched_relocation(kind):
    """CALLEE's caller with its first relocation in code turned into another kind."""
    code = bytearray(compile_ir(CALLER))
    obj = elf.parse(bytes(code))
    first = next(r for r in obj.relocations if obj.sections[r.section].flags & elf.SHF_EXECINSTR)
    old = struct.pack("<QQq", first.offset, first.symbol << 32 | first.kind, first.addend)
    at = bytes(code).index(old)
    code[at:at + 24] = struct.pack("<QQq", first.offset, first.symbol << 32 | kind, first.addend)
    return bytes(code)


def test_an_unknown_relocation():
    with pytest.raises(CompileError, match="relocation type 77"):
        load([patched_relocation(77), compile_ir(CALLEE)])


@pytest.mark.skipif(not X86, reason="a relocation of x86-64")
def test_an_address_out_of_reach():
    with pytest.raises(CompileError, match=r"R_X86_64_32 to .* is out of reach"):
        load([patched_relocation(10), compile_ir(CALLEE)])


def test_aarch64_relocations():
    """Instructions patched for AArch64 hold the addresses that a disassembler would show."""
    text = CALLER + "\ndefine <4 x float> @h(<4 x float> %a) {\n" \
        "  %b = fadd <4 x float> %a, <float 1.0, float 2.0, float 3.0, float 4.5>\n  ret <4 x float> %b\n}"
    code = workers().compile(Request(text, "aarch64-unknown-linux-gnu", "generic", "+neon"))
    names = {elf.RULES[elf.AARCH64][r.kind].name for r in elf.parse(code).relocations}
    assert {"R_AARCH64_CALL26", "R_AARCH64_ADR_PREL_PG_HI21", "R_AARCH64_LDST128_ABS_LO12_NC"} <= names
    image = load([code], {"g": 0x1234567890}, machine=elf.AARCH64)
    start = image.symbols["f"]
    words = [int.from_bytes(ctypes.string_at(start + 4 * i, 4), "little") for i in range(16)]
    call = next(i for i, w in enumerate(words) if w >> 26 == 0b100101)
    offset = (words[call] & 0x3FFFFFF) << 2
    offset -= (offset >> 27 & 1) << 28
    target = start + 4 * call + offset
    assert ctypes.string_at(target, 8) == elf.stub(elf.AARCH64, 0)[:8]
    assert int.from_bytes(ctypes.string_at(target + 8, 8), "little") == 0x1234567890
    image.close()


@pytest.mark.parametrize(("kind", "s", "p", "before", "after"), [
    (283, 0x10000, 0x0F000, 0x94000000, 0x94000400),  # bl +0x1000
    (282, 0x0F000, 0x10000, 0x14000000, 0x17FFFC00),  # b -0x1000
    (275, 0x12345678, 0x12340000, 0x90000000, 0xB0000020),  # adrp x0, +5 pages
    (277, 0x12345678, 0, 0x91000000, 0x9119E000),  # add x0, x0, #0x678
    (286, 0x12345678, 0, 0xF9400000, 0xF9433C00),  # ldr x0, [x0, #0x678]
    (263, 0x1234, 0, 0xD2800000, 0xD2824680),  # movz x0, #0x1234
])
def test_aarch64_encodings(kind, s, p, before, after):
    word = bytearray(before.to_bytes(4, "little"))
    elf.RULES[elf.AARCH64][kind].patch(word, 0, s, p)
    assert int.from_bytes(word, "little") == after
