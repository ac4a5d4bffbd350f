"""Reading a linked code object: its kernels and what each needs, from the ELF symbols and the kernel descriptors.

Source: "User Guide for AMDGPU Backend", LLVM documentation, table Kernel Descriptor.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ...errors import CompileError
from .link import DYNAMIC, DYNSYM, EHDR, MACHINE, PHDR, PT_LOAD, SHDR, SYM, _text

DESCRIPTOR = struct.Struct("<IIIIq20xIIIHH4x")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a code object.

    Attributes:
        name: as it is looked up.
        shared_bytes: LDS of a block, without what a launch adds.
        private_bytes: scratch of one thread (registers that were spilled, arrays on the stack).
        argument_bytes: of the kernel arguments.
        entry: address of its first instruction; ``descriptor``: address of its descriptor.
        registers: vector registers of one thread, rounded up to the hardware's granularity (arch and accumulation together).
        wave: threads of a wave: 32 or 64.
    """

    name: str
    shared_bytes: int
    private_bytes: int
    argument_bytes: int
    entry: int
    descriptor: int
    registers: int
    wave: int


def kernels(data: bytes) -> list[Kernel]:
    """The kernels of a code object, by their descriptors.

    Raises:
        CompileError: it is no linked AMDGPU code object.
    """
    try:
        header = EHDR.unpack_from(data)
        if header[0][:6] != b"\x7fELF\x02\x01" or header[1] != 3 or header[2] != MACHINE:
            raise CompileError("this is not a linked AMDGPU code object")
        sections = [SHDR.unpack_from(data, header[6] + i * SHDR.size) for i in range(header[12])]
        segments = [PHDR.unpack_from(data, header[5] + i * PHDR.size) for i in range(header[10])]
        table = next(s for s in sections if s[1] == DYNSYM)
        names = sections[table[6]]
        strings = data[names[4]:names[4] + names[5]]
        symbols = {_text(strings, s[0]): s for s in SYM.iter_unpack(data[table[4]:table[4] + table[5]])}
        assert any(s[1] == DYNAMIC for s in sections)
        return [_kernel(name[:-3], s[4], data, segments) for name, s in symbols.items() if name.endswith(".kd")]
    except (struct.error, StopIteration, ValueError, AssertionError) as e:
        raise CompileError(f"a damaged code object: {e}") from e


def _kernel(name: str, address: int, data: bytes, segments: list[tuple[int, ...]]) -> Kernel:
    shared, private, arguments, _, entry, _, rsrc1, _, properties, _ = DESCRIPTOR.unpack_from(data, _offset(address, segments))
    wave = 32 if properties & 1 << 10 else 64
    return Kernel(name, shared, private, arguments, address + entry, address, ((rsrc1 & 0x3F) + 1) * 8, wave)


def _offset(address: int, segments: list[tuple[int, ...]]) -> int:
    """Where the file has the byte at ``address``."""
    for kind, _, offset, start, _, size, _, _ in segments:
        if kind == PT_LOAD and start <= address < start + size:
            return offset + address - start
    raise ValueError(f"no segment holds the address {address:#x}")


def code(data: bytes, kernel: Kernel, count: int = 16) -> bytes:
    """The first ``count`` bytes of a kernel's code."""
    header = EHDR.unpack_from(data)
    segments = [PHDR.unpack_from(data, header[5] + i * PHDR.size) for i in range(header[10])]
    start = _offset(kernel.entry, segments)
    return data[start:start + count]


__all__ = ["Kernel", "code", "kernels"]
