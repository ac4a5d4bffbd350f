"""Code generators of your own, and one graph compiled for several targets.

:class:`CodeGenerator` turns a list of tile operations into text, one method a kind of operation; the base class writes PTX that
``ptxas`` assembles.  ``@tessera.compiler`` makes a class with ``compile(graph, targets)`` a driver: it gets the steps
(:class:`Driver`) that take a graph to PTX, GCN and the CPU's LLVM IR, and to binaries.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import llvmlite.binding as llvm  # type: ignore[import-untyped]

from .compiler import GraphIR
from .errors import ArgumentError, CompileError, UnsupportedError, suggest
from .ir.core import Function, Op, Value
from .transforms.canonicalize import canonicalize, uniform
from .transforms.expand import expand_composites
from .types import dtypes as dt
from .types.dtypes import DType

C = TypeVar("C", bound=type)


# -- tile operations -----------------------------------------------------------------------------------------------------------
@dataclass(eq=False)
class TileOp:
    """One operation of a :class:`TileIR`.

    Attributes:
        type: "load", "compute" or "store".
        name: what it computes ("mma", "add" …); of loads and stores, the parameter.
        output: the value it defines; of a store, the value it writes.
        inputs: the values it reads.
        registers: 32-bit registers a thread holds of ``output``.
        last: nothing follows.
    """

    type: str
    name: str
    output: str
    inputs: tuple[str, ...] = ()
    registers: int = 1
    last: bool = False

    @property
    def is_tensor_core(self) -> bool:
        """True for products that a matrix unit computes."""
        return self.name == "mma"

    @property
    def input_a(self) -> str | None:
        return self.inputs[0] if self.inputs else None

    @property
    def input_b(self) -> str | None:
        return self.inputs[1] if len(self.inputs) > 1 else None

    @property
    def input_c(self) -> str | None:
        return self.inputs[2] if len(self.inputs) > 2 else None


@dataclass
class TileIR:
    """A kernel as operations on values that the threads of a block hold; ``params`` are arrays in global memory.

    Thread t of a parameter's value holds the registers at elements ``t * registers`` of the array (of matrix operands, the
    fragments that the instruction wants).
    """

    name: str
    params: tuple[str, ...]
    operations: list[TileOp] = field(default_factory=list)

    def __post_init__(self) -> None:
        for i, op in enumerate(self.operations):
            op.last = i == len(self.operations) - 1

    @staticmethod
    def mma(name: str = "mma") -> TileIR:
        """D = A @ B + C of one warp: 16 x 16 times 16 x 8 in bf16, sums in f32, operands in fragment order."""
        return TileIR(name, ("a", "b", "c", "d"), [
            TileOp("load", "a", "a_frag", registers=4), TileOp("load", "b", "b_frag", registers=2),
            TileOp("load", "c", "acc", registers=4), TileOp("compute", "mma", "sum", ("a_frag", "b_frag", "acc"), 4),
            TileOp("store", "d", "sum", registers=4)])

    @staticmethod
    def pointwise(name: str, params: Sequence[str], steps: Sequence[tuple[str, str, tuple[str, ...]]], result: str) -> TileIR:
        """One element a thread: ``steps`` are (op, value, operands) over the parameters, ``result`` is written to ``out``."""
        loads = [TileOp("load", p, p) for p in params]
        return TileIR(name, (*params, "out"), [*loads, *[TileOp("compute", o, v, tuple(xs)) for o, v, xs in steps],
                                               TileOp("store", "out", result)])


# -- generators ------------------------------------------------------------------------------------------------------------------
GENERATORS: dict[str, type[CodeGenerator]] = {}
"""Generators by the target that they name (their attribute ``target``); the latest wins."""

_REGULAR = {"add": "add.f32", "sub": "sub.f32", "mul": "mul.f32", "div": "div.rn.f32", "max": "max.NaN.f32", "min": "min.NaN.f32",
            "neg": "neg.f32", "abs": "abs.f32", "fma": "fma.rn.f32", "sqrt": "sqrt.rn.f32"}


class CodeGenerator:
    """The base of code generators; a subclass with an attribute ``target`` is found under that name (:func:`generator_for`)."""

    target = ""
    arch = "sm_80"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "target" in cls.__dict__:
            GENERATORS[canonical_target(cls.target)] = cls

    def generate(self, tile_ir: TileIR) -> str:
        """The kernel's text."""
        regs = self.allocate_registers(tile_ir)
        steps = {"load": self.gen_load, "compute": self.gen_compute, "store": self.gen_store}
        body = [steps[op.type](op, regs) for op in tile_ir.operations]
        return "\n".join([self.gen_signature(tile_ir), self.gen_register_decls(regs), *body])

    def gen_signature(self, tile_ir: TileIR) -> str:
        """The head of the module and the kernel's parameters."""
        params = ", ".join(f".param .u64 param_{p}" for p in tile_ir.params)
        return f".version 7.8\n.target {self.arch}\n.address_size 64\n\n.visible .entry {tile_ir.name}({params})\n{{"

    def allocate_registers(self, tile_ir: TileIR) -> dict[str, str]:
        """The registers of each value, as they stand inside an instruction's braces."""
        kinds = self._kinds(tile_ir)
        out: dict[str, str] = {}
        count = {"f": 0, "r": 0}
        for op in tile_ir.operations:
            if op.type != "store":
                kind = kinds[op.output]
                out[op.output] = ", ".join(f"%{kind}{count[kind] + i}" for i in range(op.registers))
                count[kind] += op.registers
        return out

    @staticmethod
    def _kinds(tile_ir: TileIR) -> dict[str, str]:
        """``r`` (bits) for the 16-bit operands of matrix units, ``f`` for f32."""
        packed = {v for op in tile_ir.operations if op.is_tensor_core for v in op.inputs[:2]}
        return {op.output: "r" if op.output in packed else "f" for op in tile_ir.operations}

    def gen_register_decls(self, regs: Mapping[str, str]) -> str:
        """Declarations of these registers and of those for addresses."""
        used = [r for value in regs.values() for r in value.split(", ")]
        lines = [f"    .reg {'.f32' if r[1] == 'f' else '.b32'} {r};" for r in used]
        return "\n".join([*lines, "    .reg .b32 %index, %width, %block;", "    .reg .b64 %base, %offset;", "    mov.u32 %index, %tid.x;",
                          "    mov.u32 %width, %ntid.x;", "    mov.u32 %block, %ctaid.x;",
                          "    mad.lo.u32 %index, %block, %width, %index;"])

    def gen_load(self, op: TileOp, regs: Mapping[str, str]) -> str:
        """This thread's part of an array into registers."""
        return "\n".join([*self._address(op), f"    ld.global{self._access(regs[op.output])};".replace("@", "[%base]", 1)])

    def gen_store(self, op: TileOp, regs: Mapping[str, str]) -> str:
        """Registers into this thread's part of an array; the kernel ends after its last operation."""
        text = "\n".join([*self._address(op), f"    st.global{self._access(regs[op.output], store=True)};".replace("@", "[%base]", 1)])
        return f"{text}\n    ret;\n}}\n" if op.last else text

    def _address(self, op: TileOp) -> list[str]:
        return [f"    ld.param.u64 %base, [param_{op.name}];", "    cvta.to.global.u64 %base, %base;",
                f"    mul.wide.u32 %offset, %index, {4 * op.registers};", "    add.u64 %base, %base, %offset;"]

    @staticmethod
    def _access(registers: str, store: bool = False) -> str:
        names = registers.split(", ")
        kind = "f32" if names[0][1] == "f" else "b32"
        vector = f".v{len(names)}" if len(names) > 1 else ""
        value = f"{{{registers}}}" if len(names) > 1 else registers
        return f"{vector}.{kind} @, {value}" if store else f"{vector}.{kind} {value}, @"

    def gen_compute(self, op: TileOp, regs: Mapping[str, str]) -> str:
        """A product on the matrix unit, or one instruction."""
        if not op.is_tensor_core:
            return self.gen_regular_compute(op, regs)
        braces = ", ".join(f"{{{regs[v]}}}" for v in (op.output, *op.inputs))
        return f"    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {braces};"

    def gen_regular_compute(self, op: TileOp, regs: Mapping[str, str]) -> str:
        """One f32 instruction.

        Raises:
            UnsupportedError: there is none for the op.
        """
        if op.name not in _REGULAR:
            raise UnsupportedError(f"no instruction computes {op.name!r}{suggest(op.name, _REGULAR)}", expected=", ".join(_REGULAR))
        return f"    {_REGULAR[op.name]} {', '.join(regs[v] for v in (op.output, *op.inputs))};"


def generator_for(target: str) -> CodeGenerator:
    """The code generator registered for a target.

    Raises:
        ArgumentError: there is none.
    """
    name = canonical_target(target)
    if name not in GENERATORS:
        raise ArgumentError(f"no code generator is registered for {target!r}{suggest(name, GENERATORS)}",
                            expected=", ".join(GENERATORS) or "none is registered", received=target)
    return GENERATORS[name]()


# -- targets -------------------------------------------------------------------------------------------------------------------
_ALIASES = {"nvidia": "cuda", "ptx": "cuda", "gpu": "cuda", "amd": "rocm", "gcn": "rocm", "hip": "rocm", "x86": "cpu", "host": "cpu"}


def canonical_target(name: str) -> str:
    return _ALIASES.get(name.lower(), name.lower())


@dataclass(frozen=True)
class Target:
    """What to compile for: ``type`` is "cuda", "rocm" or "cpu" (or another name of one: nvidia, amd, x86), ``arch`` the model."""

    type: str
    arch: str = ""

    def __post_init__(self) -> None:
        kind = canonical_target(self.type)
        if kind not in _MACHINES:
            raise ArgumentError(f"no target is called {self.type!r}{suggest(self.type, [*_MACHINES, *_ALIASES])}",
                                expected=", ".join(_MACHINES), received=self.type)
        object.__setattr__(self, "type", kind)
        object.__setattr__(self, "arch", self.arch or _MACHINES[kind][1])

    @property
    def triple(self) -> str:
        return _MACHINES[self.type][0] or llvm.get_process_triple()


_MACHINES = {"cuda": ("nvptx64-nvidia-cuda", "sm_80"), "rocm": ("amdgcn-amd-amdhsa", "gfx90a"), "cpu": ("", "")}


@dataclass(frozen=True)
class Binary:
    """An artefact: ``format`` is "ptx" (text that the driver assembles) or "elf"."""

    target: Target
    format: str
    data: bytes

    @property
    def hash(self) -> str:
        """SHA-256 of the data, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def _machine(target: Target) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.arch or llvm.get_host_cpu_name(), opt=3)


# -- the driver -----------------------------------------------------------------------------------------------------------------
class Driver:
    """The steps from a graph to binaries; a class under ``@tessera.compiler`` inherits those that it does not define."""

    def compile(self, graph: Any, targets: Iterable[Target]) -> dict[Target, Binary]:
        """One binary a target."""
        lower = {"cuda": self.lower_to_ptx, "rocm": self.lower_to_gcn, "cpu": self.lower_to_llvm}
        out = {}
        for target in targets:
            optimized = self.optimize_for_target(graph, target)
            schedule = self.generate_schedule(optimized, target)
            out[target] = self.codegen(lower[target.type](optimized, schedule), target)
        return out

    def optimize_for_target(self, graph: Any, target: Target) -> GraphIR:
        """The graph with composites written out, in one form."""
        fn = graph.function if isinstance(graph, GraphIR) else graph
        if not isinstance(fn, Function):
            raise ArgumentError("a driver compiles a graph", expected="GraphIR(fn.trace(…))", received=type(graph).__name__)
        return GraphIR(fn if target.type == "cpu" else canonicalize(expand_composites(fn)))

    def generate_schedule(self, graph: GraphIR, target: Target) -> dict[str, Any]:
        """How the work is shared out: threads of a block and elements of a thread (the CPU's own scheduler decides there)."""
        return {} if target.type == "cpu" else {"threads": 256, "elements": 1}

    def lower_to_ptx(self, graph: GraphIR, schedule: Mapping[str, Any]) -> str:
        """PTX of a pointwise graph.

        Raises:
            UnsupportedError: an op of the graph is not pointwise arithmetic.
        """
        target = Target("cuda")
        return str(_machine(target).emit_assembly(_module(PointwiseKernel(graph.function, target).text())))

    def lower_to_gcn(self, graph: GraphIR, schedule: Mapping[str, Any]) -> str:
        """LLVM IR for AMD GPUs of a pointwise graph; raises as :meth:`lower_to_ptx` does."""
        return PointwiseKernel(graph.function, Target("rocm")).text()

    def lower_to_llvm(self, graph: GraphIR, schedule: Mapping[str, Any]) -> str:
        """The CPU's LLVM IR of any graph, through every level."""
        from .tracing import eager
        return str(eager.compile_graph(graph.function).target_ir)  # type: ignore[attr-defined]

    def codegen(self, target_ir: str, target: Target) -> Binary:
        """Machine code: PTX stays text, the others become an object file (of a CPU program of several modules, one after another).

        Raises:
            CompileError: the text is none that LLVM accepts.
        """
        if target.type == "cuda":
            return Binary(target, "ptx", target_ir.encode())
        machine = _machine(target)
        modules = [m for m in re.split(r"(?m)^[#;] ====.*\n", target_ir) if m.strip()]
        return Binary(target, "elf", b"".join(bytes(machine.emit_object(_module(m))) for m in modules))


def _module(text: str) -> Any:
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as e:
        raise CompileError(f"LLVM refuses the program: {str(e).strip().splitlines()[0]}") from None
    return module


def driver(cls: C) -> C:
    """``@tessera.compiler``: a class with ``compile(graph, targets)`` becomes a driver with the steps of :class:`Driver`."""
    if not isinstance(cls, type):
        raise ArgumentError("@tessera.compiler decorates a class", received=type(cls).__name__)
    if issubclass(cls, Driver):
        return cls
    return type(cls.__name__, (cls, Driver), {"__doc__": cls.__doc__, "__module__": cls.__module__})  # type: ignore[return-value]


# -- pointwise graphs on GPUs -----------------------------------------------------------------------------------------------------
_TYPES: dict[DType, str] = {dt.f32: "float", dt.f64: "double", dt.int32: "i32", dt.int64: "i64", dt.bool_: "i1"}
_FLOAT = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT = {"add": "add", "sub": "sub", "mul": "mul"}
_COMPARE = {"eq": ("oeq", "eq"), "ne": ("une", "ne"), "lt": ("olt", "slt"),
            "le": ("ole", "sle"), "gt": ("ogt", "sgt"), "ge": ("oge", "sge")}
_POSITION = {
    "cuda": ("call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()", "call i32 @llvm.nvvm.read.ptx.sreg.tid.x()", "ptx_kernel"),
    "rocm": ("call i32 @llvm.amdgcn.workgroup.id.x()", "call i32 @llvm.amdgcn.workitem.id.x()", "amdgpu_kernel"),
}


class PointwiseKernel:
    """LLVM IR of a graph of pointwise arithmetic on equal shapes: one element a thread, blocks of 256, the count as last argument."""

    def __init__(self, fn: Function, target: Target):
        self.fn, self.target = fn, target
        self.lines: list[str] = []
        self.names: dict[Value, str] = {}
        self.declared: dict[str, str] = {}

    def text(self) -> str:
        """The module.

        Raises:
            UnsupportedError: an op or a dtype that this lowering does not have.
        """
        block, thread, convention = _POSITION[self.target.type]
        for i, a in enumerate(self.fn.args):
            self.names[a] = self._new(f"load {self._type(a)}, ptr addrspace(1) {self._at(f'%in{i}', a)}")
        for op in self.fn.body.ops:
            if op.name != "return":
                self._op(op)
        for i, v in enumerate(self.fn.returns):
            self.lines.append(f"store {self._type(v)} {self._use(v)}, ptr addrspace(1) {self._at(f'%out{i}', v)}")
        params = [f"ptr addrspace(1) %in{i}" for i in range(len(self.fn.args))] + \
            [f"ptr addrspace(1) %out{i}" for i in range(len(self.fn.returns))] + ["i64 %n"]
        body = "\n".join(f"  {x}" for x in self.lines)
        for intrinsic in (block, thread):
            self.declared[intrinsic.partition("@")[2]] = intrinsic.replace("call", "declare")
        return (f'target triple = "{self.target.triple}"\n\ndefine {convention} void @{self.fn.name}({", ".join(params)}) {{\nentry:\n'
                f"  %block = {block}\n  %thread = {thread}\n  %base = mul i32 %block, 256\n  %small = add i32 %base, %thread\n"
                "  %i = zext i32 %small to i64\n  %inside = icmp ult i64 %i, %n\n  br i1 %inside, label %work, label %end\nwork:\n"
                f"{body}\n  br label %end\nend:\n  ret void\n}}\n\n" + "\n".join(self.declared.values()) + "\n")

    def _new(self, text: str) -> str:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def _at(self, pointer: str, v: Value) -> str:
        return self._new(f"getelementptr {'i8' if v.type.dtype is dt.bool_ else self._type(v)}, ptr addrspace(1) {pointer}, i64 %i")

    def _type(self, v: Value) -> str:
        t = _TYPES.get(v.type.dtype)
        if t is None:
            raise UnsupportedError(f"pointwise kernels for {self.target.type} have no {v.type.dtype}", expected=", ".join(map(str, _TYPES)))
        return t

    def _use(self, v: Value) -> str:
        number = uniform(v)
        if number is None:
            if v in self.names:
                return self.names[v]
            raise UnsupportedError(f"{v.op.name if v.op else 'a parameter'!r} is no pointwise arithmetic", loc=v.op.loc if v.op else None)
        if v.type.dtype.is_float:
            return f"0x{struct.unpack('<Q', struct.pack('<d', float(v.type.dtype.np.type(number))))[0]:016X}"
        return str(number).lower() if isinstance(number, bool) else str(int(number))

    def _call(self, name: str, t: str, *xs: str) -> str:
        full = f"llvm.{name}.{ {'float': 'f32', 'double': 'f64'}.get(t, t)}"
        self.declared[full] = f"declare {t} @{full}({', '.join([t] * len(xs))})"
        return self._new(f"call {t} @{full}({', '.join(f'{t} {x}' for x in xs)})")

    def _op(self, op: Op) -> None:
        result = op.results[0]
        if op.name in ("constant", "full", "broadcast_to", "reshape") and uniform(result) is not None:
            return
        wanted = self.fn.args[0].type.shape if self.fn.args else ()
        if result.type.shape != wanted:
            raise UnsupportedError(f"{op.name!r} changes the shape: no pointwise arithmetic", loc=op.loc)
        xs = [self._use(v) for v in op.operands]
        t = self._type(op.operands[0]) if op.operands else ""
        floating = bool(op.operands) and op.operands[0].type.dtype.is_float
        if op.name in (_FLOAT if floating else _INT):
            self.names[result] = self._new(f"{(_FLOAT if floating else _INT)[op.name]} {t} {xs[0]}, {xs[1]}")
        elif op.name in _COMPARE:
            self.names[result] = self._new(f"{'fcmp' if floating else 'icmp'} {_COMPARE[op.name][not floating]} {t} {xs[0]}, {xs[1]}")
        elif op.name == "select":
            self.names[result] = self._new(f"select i1 {xs[0]}, {self._type(result)} {xs[1]}, {self._type(result)} {xs[2]}")
        elif op.name == "neg":
            self.names[result] = self._new(f"fneg {t} {xs[0]}" if floating else f"sub {t} 0, {xs[0]}")
        elif floating and op.name in ("abs", "sqrt", "fma"):
            self.names[result] = self._call({"abs": "fabs"}.get(op.name, op.name), t, *xs)
        elif floating and op.name in ("maximum", "minimum"):
            self.names[result] = self._call(op.name, t, *xs)
        else:
            raise UnsupportedError(f"{op.name!r} is no pointwise arithmetic of this lowering", loc=op.loc,
                                   hints=["Compile it for the CPU", "Split the graph"])


__all__ = ["Binary", "CodeGenerator", "Driver", "Target", "TileIR", "TileOp", "driver", "generator_for"]
