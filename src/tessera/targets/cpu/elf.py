"""Reading relocatable ELF objects (64-bit, little-endian) and the relocations of x86-64 and AArch64."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import CompileError

X86_64, AARCH64 = 62, 183
MACHINES = {X86_64: "x86-64", AARCH64: "AArch64"}

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")

SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL, SHT_INIT_ARRAY = 2, 4, 8, 9, 14
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_TLS = 1, 2, 4, 0x400
SHN_UNDEF, SHN_ABS, SHN_COMMON = 0, 0xFFF1, 0xFFF2
STB_LOCAL, STB_WEAK = 0, 2
STT_FUNC, STT_SECTION = 2, 3


@dataclass(slots=True)
class Section:
    """A section that occupies memory.  ``address`` is set when the image is laid out."""

    name: str
    flags: int
    align: int
    size: int
    data: bytes  # empty for zero-initialised sections
    address: int = 0


@dataclass(slots=True)
class Symbol:
    name: str
    binding: int
    section: int  # index into ``Object.sections``' keys, or an SHN_ constant
    value: int
    size: int


@dataclass(slots=True)
class Relocation:
    section: int
    offset: int
    kind: int
    symbol: int
    addend: int


@dataclass(slots=True)
class Object:
    machine: int
    sections: dict[int, Section] = field(default_factory=dict)
    symbols: list[Symbol] = field(default_factory=list)
    relocations: list[Relocation] = field(default_factory=list)


def parse(data: bytes, name: str = "object") -> Object:
    """Read an object file.

    Raises:
        CompileError: it is not a relocatable 64-bit ELF object for x86-64 or AArch64, or it is damaged.
    """
    try:
        return _parse(data, name)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as e:
        raise CompileError(f"{name} is a damaged object file: {e}") from e


def _parse(data: bytes, name: str) -> Object:
    ident, kind, machine, _, _, _, shoff, _, _, _, _, shentsize, shnum, shstrndx = _EHDR.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or kind != 1:
        raise CompileError(f"{name} is not a relocatable 64-bit little-endian ELF object")
    if machine not in MACHINES:
        raise CompileError(f"{name} is for machine number {machine}; the loader knows "
                           f"{' and '.join(MACHINES.values())}")
    headers = [_SHDR.unpack_from(data, shoff + i * shentsize) for i in range(shnum)]
    strings = _contents(data, headers[shstrndx])
    obj = Object(machine)
    for i, (name_at, sh_type, flags, _, offset, size, _, _, align, _) in enumerate(headers):
        sname = _cstring(strings, name_at)
        if not flags & SHF_ALLOC or sname.startswith((".eh_frame", ".note")):
            continue
        if flags & SHF_TLS or sh_type == SHT_INIT_ARRAY:
            raise CompileError(f"{name}: section {sname} (thread-local or start-up code) is not supported")
        body = b"" if sh_type == SHT_NOBITS else data[offset:offset + size]
        if sh_type != SHT_NOBITS and len(body) != size:
            raise ValueError(f"section {sname} is cut short")
        obj.sections[i] = Section(sname, flags, max(1, align), size, body)
    for h in headers:
        if h[1] == SHT_SYMTAB:
            obj.symbols = _symbols(_contents(data, h), _contents(data, headers[h[6]]))
    for h in headers:
        if h[1] == SHT_REL and h[7] in obj.sections:
            raise CompileError(f"{name} has relocations without addends, which no supported target uses")
        if h[1] == SHT_RELA and h[7] in obj.sections:
            obj.relocations += [Relocation(h[7], off, info & 0xFFFFFFFF, info >> 32, addend)
                                for off, info, addend in _RELA.iter_unpack(_contents(data, h))]
    return obj


def _contents(data: bytes, header: tuple[int, ...]) -> bytes:
    offset, size = header[4], header[5]
    if offset + size > len(data):
        raise ValueError("a section lies beyond the end of the file")
    return data[offset:offset + size]


def _cstring(table: bytes, at: int) -> str:
    return table[at:table.index(b"\0", at)].decode()


def _symbols(table: bytes, strings: bytes) -> list[Symbol]:
    return [Symbol(_cstring(strings, at), info >> 4, shndx, value, size)
            for at, info, _, shndx, value, size in _SYM.iter_unpack(table)]


# -- relocations -----------------------------------------------------------------------------------------------------
# A rule patches ``image`` at ``at``; s is the symbol's address plus addend (or of its GOT slot), p the place's address.
Patch = Callable[[bytearray, int, int, int], None]


class OutOfRange(ValueError):
    """The distance does not fit the instruction."""


def _fit(value: int, bits: int, signed: bool = True) -> int:
    lo, hi = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not lo <= value <= hi:
        raise OutOfRange(f"{value:#x} does not fit in {bits} bits")
    return value & ((1 << bits) - 1)


def _put(size: int, relative: bool, bits: int, signed: bool = True) -> Patch:
    def patch(image: bytearray, at: int, s: int, p: int) -> None:
        value = s - p if relative else s
        image[at:at + size] = _fit(value, bits, signed).to_bytes(size, "little")
    return patch


def _insn(update: Callable[[int, int, int], int]) -> Patch:
    def patch(image: bytearray, at: int, s: int, p: int) -> None:
        insn = int.from_bytes(image[at:at + 4], "little")
        image[at:at + 4] = update(insn, s, p).to_bytes(4, "little")
    return patch


def _adr(insn: int, offset: int) -> int:
    imm = _fit(offset, 21)
    return insn & ~0x60FFFFE0 | (imm & 3) << 29 | (imm >> 2) << 5


def _page(insn: int, s: int, p: int) -> int:
    return _adr(insn, (s >> 12) - (p >> 12))


def _low12(scale: int) -> Patch:
    def update(insn: int, s: int, p: int) -> int:
        low = s & 0xFFF
        if low & ((1 << scale) - 1):
            raise OutOfRange(f"address {s:#x} is not a multiple of {1 << scale}")
        return insn & ~0x3FFC00 | (low >> scale) << 10
    return _insn(update)


def _branch(bits: int, shift: int) -> Patch:
    mask = (1 << bits) - 1 << shift
    return _insn(lambda insn, s, p: insn & ~mask | _fit((s - p) >> 2, bits) << shift)


def _movw(group: int, check: bool) -> Patch:
    def update(insn: int, s: int, p: int) -> int:
        if check:
            _fit(s, 16 * (group + 1), signed=False)
        return insn & ~0x1FFFE0 | (s >> 16 * group & 0xFFFF) << 5
    return _insn(update)


@dataclass(frozen=True, slots=True)
class Rule:
    """``via``: "" (the symbol itself), "plt" (a call: may go through a stub) or "got" (the address of a pointer to it)."""

    name: str
    patch: Patch
    via: str = ""


_PC32 = _put(4, True, 32)
RULES: dict[int, dict[int, Rule]] = {
    X86_64: {
        1: Rule("R_X86_64_64", _put(8, False, 64, signed=False)),
        2: Rule("R_X86_64_PC32", _PC32),
        4: Rule("R_X86_64_PLT32", _PC32, "plt"),
        9: Rule("R_X86_64_GOTPCREL", _PC32, "got"),
        10: Rule("R_X86_64_32", _put(4, False, 32, signed=False)),
        11: Rule("R_X86_64_32S", _put(4, False, 32)),
        24: Rule("R_X86_64_PC64", _put(8, True, 64)),
        41: Rule("R_X86_64_GOTPCRELX", _PC32, "got"),
        42: Rule("R_X86_64_REX_GOTPCRELX", _PC32, "got"),
    },
    AARCH64: {
        257: Rule("R_AARCH64_ABS64", _put(8, False, 64, signed=False)),
        258: Rule("R_AARCH64_ABS32", _put(4, False, 32, signed=False)),
        260: Rule("R_AARCH64_PREL64", _put(8, True, 64)),
        261: Rule("R_AARCH64_PREL32", _PC32),
        263: Rule("R_AARCH64_MOVW_UABS_G0", _movw(0, True)),
        264: Rule("R_AARCH64_MOVW_UABS_G0_NC", _movw(0, False)),
        265: Rule("R_AARCH64_MOVW_UABS_G1", _movw(1, True)),
        266: Rule("R_AARCH64_MOVW_UABS_G1_NC", _movw(1, False)),
        267: Rule("R_AARCH64_MOVW_UABS_G2", _movw(2, True)),
        268: Rule("R_AARCH64_MOVW_UABS_G2_NC", _movw(2, False)),
        269: Rule("R_AARCH64_MOVW_UABS_G3", _movw(3, False)),
        273: Rule("R_AARCH64_LD_PREL_LO19", _branch(19, 5)),
        274: Rule("R_AARCH64_ADR_PREL_LO21", _insn(lambda insn, s, p: _adr(insn, s - p))),
        275: Rule("R_AARCH64_ADR_PREL_PG_HI21", _insn(_page)),
        277: Rule("R_AARCH64_ADD_ABS_LO12_NC", _low12(0)),
        278: Rule("R_AARCH64_LDST8_ABS_LO12_NC", _low12(0)),
        279: Rule("R_AARCH64_TSTBR14", _branch(14, 5)),
        280: Rule("R_AARCH64_CONDBR19", _branch(19, 5)),
        282: Rule("R_AARCH64_JUMP26", _branch(26, 0), "plt"),
        283: Rule("R_AARCH64_CALL26", _branch(26, 0), "plt"),
        284: Rule("R_AARCH64_LDST16_ABS_LO12_NC", _low12(1)),
        285: Rule("R_AARCH64_LDST32_ABS_LO12_NC", _low12(2)),
        286: Rule("R_AARCH64_LDST64_ABS_LO12_NC", _low12(3)),
        299: Rule("R_AARCH64_LDST128_ABS_LO12_NC", _low12(4)),
        311: Rule("R_AARCH64_ADR_GOT_PAGE", _insn(_page), "got"),
        312: Rule("R_AARCH64_LD64_GOT_LO12_NC", _low12(3), "got"),
    },
}


def stub(machine: int, address: int) -> bytes:
    """Sixteen bytes of code that jump to any address."""
    if machine == X86_64:
        return b"\xff\x25\x00\x00\x00\x00" + address.to_bytes(8, "little") + b"\xcc\xcc"  # jmp *[rip]
    return b"\x50\x00\x00\x58\x00\x02\x1f\xd6" + address.to_bytes(8, "little")  # ldr x16, .+8; br x16
