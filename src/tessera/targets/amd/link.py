"""A relocatable AMDGPU object, as LLVM writes it, to the shared object that ROCm loads: no linker of a toolchain is needed.

A code object is an ELF shared object with three segments, each on pages of its own in memory:

==========  =======================================================================================================
read only   ELF and program headers, the note with the kernels' metadata, the dynamic symbols, their hash table and
            names, and read-only data: constants and the kernel descriptors (``name.kd``)
executable  the code
writable    the dynamic section
==========  =======================================================================================================

Every global function and object becomes a dynamic symbol; ROCm looks kernels up by their descriptors.  Relocations are resolved
here, for the descriptor of a kernel states how far away its code is, and code addresses constants relative to itself.

Source: "User Guide for AMDGPU Backend", LLVM documentation, sections Code Object, ELF Code Object and Relocation Records; System V
ABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import CompileError

MACHINE = 224  # EM_AMDGPU
PAGE, CODE_ALIGN = 0x1000, 256

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QQq")
DYN = struct.Struct("<QQ")

PROGBITS, SYMTAB, STRTAB, RELA_SECTION, HASH, DYNAMIC, NOTE, NOBITS, DYNSYM = 1, 2, 3, 4, 5, 6, 7, 8, 11
WRITE, ALLOC, EXECUTE = 1, 2, 4
GLOBAL, OBJECT, FUNCTION = 1, 1, 2
PROTECTED = 3
PT_LOAD, PT_DYNAMIC, PT_NOTE, PT_PHDR, PT_GNU_STACK = 1, 2, 4, 6, 0x6474E551
DT_NULL, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT = 0, 4, 5, 6, 10, 11

# kind -> (what is stored at the place: from the distance target - place), the format
RELOCATIONS: dict[int, tuple[str, str, Callable[[int], int]]] = {
    4: ("R_AMDGPU_REL32", "<I", lambda d: d & 0xFFFFFFFF),
    5: ("R_AMDGPU_REL64", "<q", lambda d: d),
    10: ("R_AMDGPU_REL32_LO", "<I", lambda d: d & 0xFFFFFFFF),
    11: ("R_AMDGPU_REL32_HI", "<I", lambda d: d >> 32 & 0xFFFFFFFF),
}


@dataclass
class Section:
    """A section of the relocatable object; ``offset`` and ``address`` are where the code object has it."""

    name: str
    kind: int
    flags: int
    align: int
    info: int
    data: bytes
    offset: int = 0
    address: int = 0


@dataclass
class Symbol:
    """A symbol: ``section`` is an index, 0 where another object must define it."""

    name: str
    kind: int
    binding: int
    section: int
    value: int
    size: int


@dataclass
class Relocatable:
    """What LLVM emitted: sections by index, symbols, the e_flags (which processor) and the ABI bytes."""

    ident: bytes
    flags: int
    sections: list[Section]
    symbols: list[Symbol]


def read(data: bytes) -> Relocatable:
    """Parse a relocatable AMDGPU object.

    Raises:
        CompileError: it is none, or it is damaged.
    """
    try:
        header = EHDR.unpack_from(data)
        ident, kind, machine, _, _, _, at, flags, _, _, _, size, count, names_at = header
        if ident[:6] != b"\x7fELF\x02\x01" or kind != 1 or machine != MACHINE:
            raise CompileError("this is not a relocatable AMDGPU object")
        headers = [SHDR.unpack_from(data, at + i * size) for i in range(count)]
        body = [b"" if h[1] == NOBITS else data[h[4]:h[4] + h[5]] for h in headers]
        if any(h[1] != NOBITS and len(b) != h[5] for h, b in zip(headers, body, strict=True)):
            raise ValueError("a section is cut short")
        names = body[names_at]
        sections = [Section(_text(names, h[0]), h[1], h[2], max(1, h[8]), h[7], b) for h, b in zip(headers, body, strict=True)]
        symbols: list[Symbol] = []
        for h, b in zip(headers, body, strict=True):
            if h[1] == SYMTAB:
                symbols = [Symbol(_text(body[h[6]], name), info & 15, info >> 4, section, value, length)
                           for name, info, _, section, value, length in SYM.iter_unpack(b)]
        return Relocatable(ident, flags, sections, symbols)
    except (struct.error, IndexError, ValueError) as e:
        raise CompileError(f"a damaged AMDGPU object: {e}") from e


def _text(table: bytes, at: int) -> str:
    return table[at:table.index(b"\0", at)].decode()


def link(data: bytes) -> bytes:
    """The loadable code object for a relocatable one.

    Raises:
        CompileError: it is no AMDGPU object, it has writable data (kernels have none), names something that it does not define,
            or needs a relocation that kernels do not have.
    """
    return _Linker(read(data)).link()


class _Linker:
    """Lays the code object out and writes it."""

    def __init__(self, obj: Relocatable):
        self.obj = obj
        loaded = [s for s in obj.sections if s.flags & ALLOC and s.data and s.kind in (PROGBITS, NOTE, NOBITS)]
        if any(s.flags & WRITE or s.kind == NOBITS for s in loaded):
            raise CompileError("a kernel's object has writable data, which code objects made here do not carry")
        self.notes = [s for s in loaded if s.kind == NOTE]
        self.constants = [s for s in loaded if s.kind == PROGBITS and not s.flags & EXECUTE]
        self.code = [s for s in loaded if s.flags & EXECUTE]
        if len(self.notes) != 1 or not self.code:
            raise CompileError("the object holds no kernel: it has no code or no metadata")
        self.exported = [s for s in obj.symbols if s.binding == GLOBAL and s.section and s.kind in (OBJECT, FUNCTION)]
        self.names = b"\0" + b"".join(s.name.encode() + b"\0" for s in self.exported)
        self.at: dict[str, tuple[int, int]] = {}  # made sections: (offset, bytes); in memory they are at their offset, but for ``dynamic``

    def link(self) -> bytes:
        self._place()
        image = bytearray(self.end)
        for s in (*self.notes, *self.constants, *self.code):
            image[s.offset:s.offset + len(s.data)] = s.data
        self._relocate(image)
        self._dynamic(image)
        return self._headers(image)

    # -- layout ------------------------------------------------------------------------------------------------------------
    def _place(self) -> None:
        """Offsets and addresses.  The code lies one page, the dynamic section two pages beyond its offset in the file, so that no
        two segments share a page."""
        self.programs = 7
        position = EHDR.size + PHDR.size * self.programs

        def place(size: int, align: int) -> int:
            nonlocal position
            start = -(-position // align) * align
            position = start + size
            return start

        def made(name: str, size: int, align: int) -> None:
            self.at[name] = place(size, align), size

        note = self.notes[0]
        note.offset = note.address = place(len(note.data), 4)
        made("dynsym", SYM.size * (1 + len(self.exported)), 8)
        made("hash", 4 * (2 + 1 + 1 + len(self.exported)), 4)  # one bucket
        made("dynstr", len(self.names), 1)
        for s in self.constants:
            s.offset = s.address = place(len(s.data), s.align)
        self.read_only_end = position
        self.code_start = place(0, CODE_ALIGN)
        for s in self.code:
            s.offset = place(len(s.data), max(CODE_ALIGN, s.align))
            s.address = s.offset + PAGE
        self.code_end = position
        made("dynamic", DYN.size * 6, 16)
        self.dynamic_address = self.at["dynamic"][0] + 2 * PAGE
        self.end = position

    # -- contents ----------------------------------------------------------------------------------------------------------
    def address(self, symbol: Symbol) -> int:
        """Where a symbol lies in memory.

        Raises:
            CompileError: it is undefined, or in a section that is not loaded.
        """
        if symbol.section == 0 or symbol.section >= len(self.obj.sections):
            raise CompileError(f"the kernel calls or reads {symbol.name!r}, which nothing defines",
                               hints=["only operations of the target's own instructions can be used in its kernels"])
        section = self.obj.sections[symbol.section]
        if not section.offset:
            raise CompileError(f"{symbol.name!r} lies in the section {section.name}, which is not loaded")
        return section.address + symbol.value

    def _relocate(self, image: bytearray) -> None:
        for table in self.obj.sections:
            if table.kind != RELA_SECTION:
                continue
            target = self.obj.sections[table.info]
            if not target.offset:
                continue  # debugging information
            for offset, info, addend in RELA.iter_unpack(table.data):
                rule = RELOCATIONS.get(info & 0xFFFFFFFF)
                if rule is None:
                    raise CompileError(f"the kernel needs the relocation {info & 0xFFFFFFFF}, which code objects made here do not have")
                _, form, stored = rule
                distance = self.address(self.obj.symbols[info >> 32]) + addend - (target.address + offset)
                struct.pack_into(form, image, target.offset + offset, stored(distance))

    def _dynamic(self, image: bytearray) -> None:
        """The dynamic symbols, a hash table of one bucket whose chain visits them all, their names, and the dynamic section."""
        name = 1
        for i, s in enumerate(self.exported, 1):
            section = 2 if s.kind == OBJECT else 3  # .rodata, .text in the section headers below
            SYM.pack_into(image, self.at["dynsym"][0] + SYM.size * i, name, s.binding << 4 | s.kind, PROTECTED, section,
                          self.address(s), s.size)
            name += len(s.name.encode()) + 1
        count = len(self.exported)
        chain = [0, *[i + 1 if i < count else 0 for i in range(1, count + 1)]]
        struct.pack_into(f"<{4 + count}I", image, self.at["hash"][0], 1, 1 + count, min(1, count), *chain)
        start, size = self.at["dynstr"]
        image[start:start + size] = self.names
        entries = ((DT_HASH, self.at["hash"][0]), (DT_STRTAB, start), (DT_SYMTAB, self.at["dynsym"][0]), (DT_STRSZ, size),
                   (DT_SYMENT, SYM.size), (DT_NULL, 0))
        for i, entry in enumerate(entries):
            DYN.pack_into(image, self.at["dynamic"][0] + DYN.size * i, *entry)

    # -- headers -----------------------------------------------------------------------------------------------------------
    def _headers(self, image: bytearray) -> bytes:
        note = self.notes[0]
        constants = self.constants[0].offset if self.constants else self.read_only_end
        dynamic, dynamic_size = self.at["dynamic"]
        made = [(n, k, f, a, self.at[n.lstrip(".")], link_, info, align, size) for n, k, f, a, link_, info, align, size in (
            (".dynsym", DYNSYM, ALLOC, None, 5, 1, 8, SYM.size), (".dynstr", STRTAB, ALLOC, None, 0, 0, 1, 0),
            (".hash", HASH, ALLOC, None, 4, 0, 4, 4), (".dynamic", DYNAMIC, ALLOC | WRITE, self.dynamic_address, 5, 0, 16, DYN.size))]
        names, rows = b"\0", [bytes(SHDR.size)]

        def row(name: str, *fields: int) -> None:
            nonlocal names
            rows.append(SHDR.pack(len(names), *fields))
            names += name.encode() + b"\0"

        row(".note", NOTE, ALLOC, note.address, note.offset, len(note.data), 0, 0, 4, 0)
        row(".rodata", PROGBITS, ALLOC, constants, constants, self.read_only_end - constants, 0, 0, 64, 0)
        row(".text", PROGBITS, ALLOC | EXECUTE, self.code[0].address, self.code[0].offset, self.code_end - self.code[0].offset, 0, 0,
            CODE_ALIGN, 0)
        for name, kind, flags, address, (offset, size), link_, info, align, each in made:
            row(name, kind, flags, offset if address is None else address, offset, size, link_, info, align, each)
        names_at = len(image)
        names_size = len(names) + len(b".shstrtab\0")
        row(".shstrtab", STRTAB, 0, 0, names_at, names_size, 0, 0, 1, 0)
        image += names + bytes(-(names_at + len(names)) % 8)
        table = len(image)
        for r in rows:
            image += r
        programs = PHDR.size * self.programs
        for i, p in enumerate((
                (PT_PHDR, 4, EHDR.size, EHDR.size, EHDR.size, programs, programs, 8),
                (PT_LOAD, 4, 0, 0, 0, self.read_only_end, self.read_only_end, PAGE),
                (PT_LOAD, 5, self.code_start, self.code_start + PAGE, self.code_start + PAGE, *[self.code_end - self.code_start] * 2, PAGE),
                (PT_LOAD, 6, dynamic, self.dynamic_address, self.dynamic_address, dynamic_size, dynamic_size, PAGE),
                (PT_DYNAMIC, 6, dynamic, self.dynamic_address, self.dynamic_address, dynamic_size, dynamic_size, 8),
                (PT_NOTE, 4, note.offset, note.address, note.address, len(note.data), len(note.data), 4),
                (PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 0))):
            PHDR.pack_into(image, EHDR.size + PHDR.size * i, *p)
        EHDR.pack_into(image, 0, self.obj.ident, 3, MACHINE, 1, 0, EHDR.size, table, self.obj.flags, EHDR.size, PHDR.size, self.programs,
                       SHDR.size, len(rows), len(rows) - 1)
        return bytes(image)


__all__ = ["Relocatable", "Section", "Symbol", "link", "read"]
