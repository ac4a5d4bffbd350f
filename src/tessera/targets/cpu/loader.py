"""Loads object files into the process: lays out their sections in fresh memory, resolves symbols, applies relocations.

Nothing is ever writable and executable at once: the image is built in ordinary memory, copied into a mapping, and its
code becomes read-and-execute before the first call.  An :class:`Image` stays mapped until :meth:`Image.close`; whoever
closes it makes sure that no thread is inside.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import CompileError
from . import elf

_PAGE = mmap.PAGESIZE
_STUB_BYTES, _GOT_BYTES = 16, 8
_HOST = {"x86_64": elf.X86_64, "AMD64": elf.X86_64, "aarch64": elf.AARCH64, "arm64": elf.AARCH64}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# What generated code may call outside itself.  The list is closed: an unknown name is an error, never a search.
_LIBC_NAMES = ("memcpy", "memmove", "memset", "memcmp", "syscall")


def libc_symbols() -> dict[str, int]:
    """Addresses of the C library's functions that generated code may call."""
    return {n: ctypes.cast(getattr(_libc, n), ctypes.c_void_p).value or 0 for n in _LIBC_NAMES}


@dataclass(slots=True)
class Image:
    """Loaded code.

    Attributes:
        symbols: address by name, for every global symbol that the objects define.
        base, size: the mapping.
    """

    base: int
    size: int
    symbols: dict[str, int] = field(default_factory=dict)
    closed: bool = False

    def function(self, name: str, prototype: type[ctypes._CFuncPtr]) -> ctypes._CFuncPtr:  # type: ignore[name-defined]
        """The function ``name`` as a ctypes callable.

        Raises:
            CompileError: the image defines no such symbol.
        """
        if name not in self.symbols:
            raise CompileError(f"the loaded code defines no symbol {name!r}")
        return prototype(self.symbols[name])

    def close(self) -> None:
        """Unmap.  The caller guarantees that no thread runs or will run this code."""
        if not self.closed:
            self.closed = True
            _libc.munmap(self.base, self.size)


def load(objects: Sequence[bytes], externals: Mapping[str, int] | None = None, *, machine: int | None = None) -> Image:
    """Link ``objects`` together and map them.

    Args:
        objects: relocatable ELF files; global symbols are shared between them.
        externals: addresses of names that no object defines; the C library's ``memcpy`` … ``syscall`` are always known.
        machine: an ``elf`` machine number, by default the host's.

    Raises:
        CompileError: a damaged object, an unknown relocation or symbol, a symbol defined twice, no memory.
    """
    host = machine if machine is not None else _HOST.get(platform.machine(), 0)
    parsed = [elf.parse(data, f"object {i}") for i, data in enumerate(objects)]
    for i, obj in enumerate(parsed):
        if obj.machine != host:
            raise CompileError(f"object {i} is for {elf.MACHINES[obj.machine]}, which is not this machine "
                               f"({elf.MACHINES.get(host, platform.machine())})")
    linker = _Linker(parsed, {**libc_symbols(), **(externals or {})}, host)
    return linker.link()


class _Linker:
    def __init__(self, objects: list[elf.Object], externals: Mapping[str, int], machine: int):
        self.objects, self.externals, self.machine = objects, externals, machine
        self.rules = elf.RULES[machine]
        self.stubs: dict[str, int] = {}  # external function -> offset of its stub
        self.slots: dict[tuple[int, int], int] = {}  # (object, symbol) -> offset of its GOT slot
        self.size = 0
        self.text_end = self.read_only_end = 0

    def link(self) -> Image:
        self.lay_out()
        base = _map(self.size)
        try:
            for obj in self.objects:
                for s in obj.sections.values():
                    s.address += base
            image = Image(base, self.size, self.globals())
            content = self.build(base, image.symbols)
            ctypes.memmove(base, bytes(content), self.size)
            self.protect(base)
        except BaseException:
            _libc.munmap(base, self.size)
            raise
        return image

    # layout: code and stubs | constants and GOT | data, each on pages of its own; addresses are offsets at first
    def lay_out(self) -> None:
        at = self.place(lambda f: bool(f & elf.SHF_EXECINSTR), 0)
        at = _round(at, _STUB_BYTES)
        for name in self.external_calls():
            self.stubs[name] = at
            at += _STUB_BYTES
        self.text_end = at = _round(at, _PAGE)
        at = self.place(lambda f: not f & (elf.SHF_EXECINSTR | elf.SHF_WRITE), at)
        at = _round(at, _GOT_BYTES)
        for key in self.got_users():
            self.slots[key] = at
            at += _GOT_BYTES
        self.read_only_end = at = _round(at, _PAGE)
        at = self.place(lambda f: bool(f & elf.SHF_WRITE), at)
        self.size = max(_round(at, _PAGE), _PAGE)

    def place(self, wanted: object, at: int) -> int:
        for obj in self.objects:
            for s in obj.sections.values():
                if wanted(s.flags):  # type: ignore[operator]
                    s.address = at = _round(at, s.align)
                    at += s.size
        return at

    def relocations_via(self, via: str) -> list[tuple[int, elf.Relocation]]:
        out = []
        for i, obj in enumerate(self.objects):
            for r in obj.relocations:
                rule = self.rules.get(r.kind)
                if rule is None:
                    where = obj.sections[r.section].name
                    raise CompileError(f"object {i} has relocation type {r.kind} in {where}, which the loader "
                                       f"for {elf.MACHINES[self.machine]} does not know")
                if r.symbol >= len(obj.symbols):
                    raise CompileError(f"object {i} is damaged: a relocation names symbol {r.symbol}")
                if rule.via == via:
                    out.append((i, r))
        return out

    def external_calls(self) -> list[str]:
        names = (self.objects[i].symbols[r.symbol] for i, r in self.relocations_via("plt"))
        return list(dict.fromkeys(s.name for s in names if s.section == elf.SHN_UNDEF))

    def got_users(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys((i, r.symbol) for i, r in self.relocations_via("got")))

    def globals(self) -> dict[str, int]:
        out: dict[str, int] = {}
        weak: dict[str, int] = {}
        for i, obj in enumerate(self.objects):
            for s in obj.symbols:
                if s.binding == elf.STB_LOCAL or s.section == elf.SHN_UNDEF:
                    continue
                if s.section == elf.SHN_COMMON:
                    raise CompileError(f"object {i}: common symbol {s.name!r} is not supported")
                address = self.address_in(obj, s)
                if s.binding == elf.STB_WEAK:
                    weak.setdefault(s.name, address)
                elif s.name in out:
                    raise CompileError(f"the symbol {s.name!r} is defined twice (again in object {i})")
                else:
                    out[s.name] = address
        return {**weak, **out}

    @staticmethod
    def address_in(obj: elf.Object, s: elf.Symbol) -> int:
        if s.section == elf.SHN_ABS:
            return s.value
        if s.section not in obj.sections:
            raise CompileError(f"the symbol {s.name!r} lies in a section that is not loaded")
        return obj.sections[s.section].address + s.value

    def resolve(self, obj: elf.Object, s: elf.Symbol, symbols: Mapping[str, int]) -> int:
        if s.section != elf.SHN_UNDEF:
            return self.address_in(obj, s)
        address = symbols.get(s.name, self.externals.get(s.name))
        if address is None and s.binding != elf.STB_WEAK:
            raise CompileError(f"generated code needs the symbol {s.name!r}, which nothing defines")
        return address or 0

    def build(self, base: int, symbols: Mapping[str, int]) -> bytearray:
        image = bytearray(self.size)
        for obj in self.objects:
            for s in obj.sections.values():
                image[s.address - base:s.address - base + len(s.data)] = s.data
        for name, at in self.stubs.items():
            target = symbols.get(name, self.externals.get(name))
            if target is None:
                raise CompileError(f"generated code calls {name!r}, which nothing defines")
            image[at:at + _STUB_BYTES] = elf.stub(self.machine, target)
        for (i, index), at in self.slots.items():
            obj = self.objects[i]
            address = self.resolve(obj, obj.symbols[index], symbols)
            image[at:at + _GOT_BYTES] = address.to_bytes(8, "little")
        for i, obj in enumerate(self.objects):
            for r in obj.relocations:
                self.relocate(image, base, i, obj, r, symbols)
        return image

    def relocate(self, image: bytearray, base: int, i: int, obj: elf.Object, r: elf.Relocation,
                 symbols: Mapping[str, int]) -> None:
        rule = self.rules[r.kind]
        symbol, section = obj.symbols[r.symbol], obj.sections[r.section]
        if rule.via == "got":
            target = base + self.slots[i, r.symbol]
        elif rule.via == "plt" and symbol.name not in symbols and symbol.name in self.stubs:
            target = base + self.stubs[symbol.name]
        else:
            target = self.resolve(obj, symbol, symbols)
        place = section.address + r.offset
        if r.offset >= section.size:
            raise CompileError(f"object {i} is damaged: a relocation lies outside {section.name}")
        try:
            rule.patch(image, place - base, target + r.addend, place)
        except elf.OutOfRange as e:
            raise CompileError(f"{rule.name} to {symbol.name or section.name!r} is out of reach: {e}") from e

    def protect(self, base: int) -> None:
        for start, end, flags in ((0, self.text_end, mmap.PROT_READ | mmap.PROT_EXEC),
                                  (self.text_end, self.read_only_end, mmap.PROT_READ)):
            if end > start and _libc.mprotect(base + start, end - start, flags) != 0:
                raise CompileError(f"the system refuses to make generated code executable (errno {ctypes.get_errno()})")


def _round(n: int, align: int) -> int:
    return -(-n // align) * align


def _map(size: int) -> int:
    address: int | None = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE,
                                     mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise CompileError(f"no memory for {size} bytes of code (errno {ctypes.get_errno()})")
    return address
