"""An emulated warp machine: runs the LLVM IR of a kernel thread by thread, its matrix instructions and copies as the PTX ISA tells them.

Threads are coroutines that meet at barriers, shuffles and matrix instructions.  Where lanes hold the elements of fragments is written
here from the tables of "Matrix fragments for mma.m16n8k*" and "ldmatrix", not from the compiler's layouts.  A copy lands when its group
is waited for, so that reading too early reads garbage.
"""

from __future__ import annotations

import functools
import operator
import re
import struct

import numpy as np

from tessera.types.dtypes import as_dtype

FORMATS = {"i8": "B", "i16": "H", "i32": "I", "i64": "Q", "float": "f", "double": "d", "half": "H", "bfloat": "H"}
GLOBAL, SHARED = 1, 3
UNSIGNED = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
            "shl": operator.lshift, "lshr": operator.rshift, "udiv": operator.floordiv, "urem": operator.mod}
FLOAT = {"fadd": np.add, "fsub": np.subtract, "fmul": np.multiply, "fdiv": np.divide}
SIGNED = {"ashr": operator.rshift, "sdiv": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
          "srem": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1)}


@functools.cache
def split(text):
    """At the commas that stand outside brackets."""
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += c in "([{<"
        depth -= c in ")]}>"
        if c == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    return [*out, text[start:].strip()]


@functools.cache
def bits_of(kind):
    return int(kind[1:]) if kind[0] == "i" else {"float": 32, "double": 64}.get(kind, 16)


class Thread:
    def __init__(self, machine, number, block):
        self.machine, self.number, self.block = machine, number, block
        self.values = dict(machine.arguments)
        self.copies, self.groups = [], []

    def get(self, name, kind="i64"):
        if name in self.values:
            return self.values[name]
        if name in ("poison", "undef", "zeroinitializer"):
            count = re.match(r"<(\d+) x", kind)
            return [0] * int(count[1]) if count else 0
        if name in ("true", "false"):
            return int(name == "true")
        if name == "@shared":
            return 0
        if kind in ("float", "double"):
            return struct.unpack("d", int(name, 16).to_bytes(8, "little"))[0] if name.startswith("0x") else float(name)
        return int(name) % (1 << bits_of(kind))

    def typed(self, text):
        """The value of "type name"."""
        kind, _, name = text.rpartition(" ")
        found = self.values.get(name)
        if found is not None:
            return found
        return self.get(name, kind.split()[0] if kind.startswith("i") else kind)

    # -- memory --
    def access(self, pointer):
        space = int(re.search(r"addrspace\((\d)\)", pointer)[1])
        return self.machine.memory[space], self.typed(pointer)

    def load(self, kind, pointer):
        memory, at = self.access(pointer)
        vector = re.match(r"<(\d+) x (\w+)>", kind)
        n, element = (int(vector[1]), vector[2]) if vector else (1, kind)
        f = f"<{n}{FORMATS[element]}"
        assert at >= 0 and at + struct.calcsize(f) <= len(memory), f"reads at {at} of {len(memory)}"
        assert at % struct.calcsize(f) == 0, "an access at no multiple of its size"
        got = list(struct.unpack_from(f, memory, at))
        return got if vector else got[0]

    def store(self, kind, value, pointer):
        memory, at = self.access(pointer)
        vector = re.match(r"<(\d+) x (\w+)>", kind)
        f = f"<{vector[1]}{FORMATS[vector[2]]}" if vector else f"<{FORMATS[kind]}"
        assert at >= 0 and at + struct.calcsize(f) <= len(memory) and at % struct.calcsize(f) == 0
        struct.pack_into(f, memory, at, *(value if vector else [value]))

    # -- running --
    def run(self):
        label, before = "start", None
        while label is not None:
            phis = {}
            for dest, text in self.machine.blocks[label]:
                if text.startswith("phi"):
                    found = re.search(rf"\[ (\S+), %{re.escape(before)} \]", text)
                    phis[dest] = self.get(found[1], text.split()[1])
                    continue
                self.values.update(phis)
                phis = {}
                if text.startswith("br label"):
                    following = text.split("%")[1]
                elif text.startswith("br i1"):
                    condition, yes, no = split(text[3:])
                    following = (yes if self.typed(condition) else no).split("%")[-1]
                elif text.startswith("ret"):
                    following = None
                elif " call " in f" {text}":
                    self.values[dest] = yield from self.call(text)
                    continue
                else:
                    self.values[dest] = self.plain(text)
                    continue
                before, label = label, following
                break

    def plain(self, text):
        name, _, rest = text.partition(" ")
        if name == "store":
            value, pointer = split(rest)[:2]
            kind = value.rpartition(" ")[0]
            return self.store(kind, self.get(value.rpartition(" ")[2], kind), pointer)
        if name == "load":
            return self.load(*split(rest)[:2])
        if name == "getelementptr":
            kind, pointer, offset = split(rest)
            size = struct.calcsize("<" + FORMATS[kind])
            bits = bits_of(offset.split()[0])
            at = self.typed(offset)
            return self.typed(pointer) + (at - (at >> (bits - 1) << bits)) * size
        if name in ("zext", "trunc", "sext", "bitcast", "fpext", "fptrunc"):
            return self.cast(name, *rest.split(" to "))
        if name == "fcmp":
            how, _, operands = rest.partition(" float ")
            a, b = (self.get(v, "float") for v in split(operands))
            return int({"oeq": a == b, "ogt": a > b, "olt": a < b, "oge": a >= b, "ole": a <= b, "une": a != b}[how])
        if name == "icmp":
            return self.compare(*rest.split(" ", 2))
        if name == "select":
            condition, yes, no = split(rest)
            return self.typed(yes) if self.typed(condition) else self.typed(no)
        if name in ("extractvalue", "extractelement"):
            value, index = split(rest)
            return self.get(value.rpartition(" ")[2])[int(index.split()[-1])]
        if name == "insertelement":
            vector, value, index = split(rest)
            out = list(self.typed(vector))
            out[int(index.split()[-1])] = self.typed(value)
            return out
        return self.arithmetic(name, rest)

    def arithmetic(self, name, rest):
        rest = re.sub(r"^(nsw|nuw|disjoint|exact) ", "", rest)
        kind, _, operands = rest.partition(" ")
        a, b = (self.get(v, kind) for v in split(operands))
        if kind == "float":
            return float(FLOAT[name](np.float32(a), np.float32(b)))
        if name in SIGNED:
            half = 1 << (bits_of(kind) - 1)
            a, b = a - 2 * half * (a >= half), b - 2 * half * (b >= half)
        return (SIGNED.get(name) or UNSIGNED[name])(a, b) % (1 << bits_of(kind))

    def compare(self, how, kind, operands):
        a, b = (self.get(v, kind) for v in split(operands))
        if how[0] == "s":
            half = 1 << (bits_of(kind) - 1)
            a, b = a - 2 * half * (a >= half), b - 2 * half * (b >= half)
        return int({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[how[-2:]])

    def cast(self, name, value, kind):
        v = self.typed(value)
        if name == "trunc":
            return v % (1 << bits_of(kind))
        if name != "bitcast":
            return v
        source = value.rpartition(" ")[0]

        def form(t):
            m = re.match(r"<(\d+) x (\w+)>", t)
            return f"<{m[1]}{FORMATS[m[2]]}" if m else f"<{FORMATS[t]}"

        got = struct.unpack(form(kind), struct.pack(form(source), *(v if isinstance(v, list) else [v])))
        return list(got) if kind.startswith("<") else got[0]

    def call(self, text):
        if " asm " in text:
            asm = re.search(r'asm (?:sideeffect )?"([^"]*)"', text)[1]
            operands = [self.typed(a) for a in split(text[text.rindex('"(') + 2:text.rindex(")")])]
            return (yield ("mma", asm, operands))
        name = re.search(r"@([\w.]+)\(", text)[1]
        args = split(text[text.index(name) + len(name) + 1:text.rindex(")")])
        if name.endswith("sreg.tid.x"):
            return self.number
        if name.endswith("sreg.ctaid.x"):
            return self.block
        if name.startswith("llvm.smin") or name.startswith("llvm.smax"):
            half = 1 << (int(name.rpartition("i")[2]) - 1)
            return (min if "min" in name else max)((self.typed(a) for a in args), key=lambda v: v - 2 * half * (v >= half))
        if "ex2.approx.ftz.f" in name:
            return float(np.exp2(np.float32(self.typed(args[0]))))
        if name.startswith("llvm.umin") or name.startswith("llvm.umax"):
            return (min if "min" in name else max)(self.typed(a) for a in args)
        if name in ("llvm.maximum.f32", "llvm.minimum.f32"):
            return float((np.maximum if "max" in name else np.minimum)(*(np.float32(self.typed(a)) for a in args)))
        if name == "llvm.fma.f32":
            a, b, c = (np.float64(self.typed(v)) for v in args)
            return float(np.float32(a * b + c))  # the product is exact; twice rounded at worst
        if "ff2bf16x2.rn" in name or "ff2f16x2.rn" in name:
            high, low = (np.float32(self.typed(a)) for a in args)
            return [int(v) for v in np.array([low, high]).astype(as_dtype("bf16" if "bf16" in name else "f16").np).view(np.uint16)]
        if "barrier" in name:
            return (yield ("barrier",))
        if "cp.async.cg" in name:
            self.copies.append((self.typed(args[0]), self.typed(args[1]), self.typed(args[2])))
        elif "commit.group" in name:
            self.groups.append(self.copies)
            self.copies = []
        elif "wait.group" in name:
            while len(self.groups) > int(args[0].split()[-1]):
                for group in self.groups.pop(0):
                    self.machine.copy(*group)
        elif "ldmatrix" in name:
            return (yield ("ldmatrix", ".trans" in name, self.typed(args[0])))
        elif "shfl.sync.bfly" in name:
            return (yield ("shuffle", self.typed(args[1]), (self.number & 31) ^ self.typed(args[2])))
        elif "shfl.sync.idx" in name:
            return (yield ("shuffle", self.typed(args[1]), self.typed(args[2]) & 31))
        else:
            raise AssertionError(f"the emulated machine has no {name}")
        return None


class Emulated:
    """A kernel on arrays, which are changed in place."""

    warp, thread = 32, Thread

    def __init__(self, module, arrays, sizes=()):
        self.module, self.arrays = module, arrays
        self.arguments, data = {}, bytearray()
        self.places = []
        for i, a in enumerate(arrays):
            data += bytes(-len(data) % 256) + b"\xa5" * 256
            self.arguments[f"%b{i}"] = len(data)
            self.places.append(len(data))
            data += a.tobytes()
        self.arguments |= {f"%size{i}": int(n) for i, n in enumerate(sizes)}
        self.memory = {GLOBAL: data + b"\xa5" * 256}
        self.blocks, label = {}, None
        for line in module.text.splitlines():
            line = line.strip()
            if re.fullmatch(r"[\w.]+:", line):
                label = line[:-1]
                self.blocks[label] = []
            elif line == "}":
                break
            elif label is not None and line:
                dest, _, text = line.partition(" = ") if line.startswith("%") else ("", "", line)
                self.blocks[label].append((dest, text))

    def copy(self, to, source, count):
        assert to % 16 == 0 and source % 16 == 0 and 0 <= count <= 16
        shared, data = self.memory[SHARED], self.memory[GLOBAL]
        shared[to:to + 16] = data[source:source + count] + bytes(16 - count)

    def run(self, blocks):
        for block in range(blocks):
            self.memory[SHARED] = bytearray(b"\x7f" * max(16, self.module.shared))
            self.one_block(block)
        for at, a in zip(self.places, self.arrays, strict=True):
            a[...] = np.frombuffer(self.memory[GLOBAL], a.dtype, a.size, at).reshape(a.shape)

    def one_block(self, block):
        threads = [self.thread(self, i, block) for i in range(self.module.threads)]
        running = {t.number: t.run() for t in threads}
        waiting = {n: next(r, None) for n, r in running.items()}
        while any(w is not None for w in waiting.values()):
            answers = {}
            if all(w is not None and w[0] == "barrier" for w in waiting.values()):
                answers = dict.fromkeys(waiting)
            else:
                for first in range(0, len(threads), self.warp):
                    warp = [waiting[first + i] for i in range(self.warp)]
                    if warp[0] is not None and warp[0][0] != "barrier":
                        assert all((w is not None and w[:2] == warp[0][:2]) or w[0] == warp[0][0] == "shuffle" for w in warp), \
                            "a warp is not together"
                        got = getattr(self, warp[0][0])(warp)
                        answers |= {first + i: g for i, g in enumerate(got)}
            assert answers, "threads wait for each other"
            for n, value in answers.items():
                try:
                    waiting[n] = running[n].send(value)
                except StopIteration:
                    waiting[n] = None

    # -- collective instructions of a warp --
    def shuffle(self, warp):
        return [warp[w[2]][1] for w in warp]

    def ldmatrix(self, warp):
        shared, out = self.memory[SHARED], [[] for _ in warp]
        for matrix in range(4):
            rows = [struct.unpack_from("<8H", shared, warp[8 * matrix + r][2]) for r in range(8)]
            for lane, words in enumerate(out):
                r, c = lane // 4, 2 * (lane % 4)
                low, high = (rows[c][r], rows[c + 1][r]) if warp[0][1] else rows[r][c:c + 2]
                words.append(low | high << 16)
        return out

    def mma(self, warp):
        m, n, k, d, a_name, b_name = re.search(r"m(\d+)n(\d+)k(\d+)\.row\.col\.(\w+)\.(\w+)\.(\w+)", warp[0][1]).groups()
        m, n, k = int(m), int(n), int(k)
        left = gathered(warp, 0, a_name, (m, k), lambda g, t, i, each: (
            g + 8 * (i // each % 2), each * t + i % each + 4 * each * (i // (2 * each))))
        first = m * k * element(a_name).itemsize // 128
        right = gathered(warp, first, b_name, (k, n), lambda g, t, i, each: (each * t + i % each + 4 * each * (i // each), g))
        at = first + k * n * element(b_name).itemsize // 128
        wide = np.float64 if d == "f32" else np.int64
        total = left.astype(wide) @ right.astype(wide)
        out = []
        for lane, w in enumerate(warp):
            g, t = lane // 4, lane % 4
            got = [w[2][at + i] + total[g + 8 * (i // 2), 2 * t + i % 2] for i in range(4)]
            out.append([float(np.float32(v)) if d == "f32" else int(v) % (1 << 32) for v in got])
        return out


NAMES = {"s8": "int8", "u8": "uint8", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2"}


def element(name):
    return as_dtype(NAMES.get(name, name))


def gathered(warp, first, name, shape, place):
    """An operand as a matrix, from the words that lanes hold."""
    dtype = element(name)
    each = 4 // dtype.itemsize
    count = shape[0] * shape[1] // 32
    out = np.full(shape, np.nan, np.float64)
    for lane, w in enumerate(warp):
        words = struct.pack(f"<{count // each}I", *w[2][first:first + count // each])
        for i, v in enumerate(np.frombuffer(words, dtype.np)):
            out[place(lane // 4, lane % 4, i, each)] = float(v)
    assert not np.isnan(out).any(), "elements that no lane holds"
    return out
