"""AMD code objects: linked without ROCm, read back by our own reader and by readelf; the loader against a stand-in of the runtime."""

import ctypes
import re
import shutil
import struct
import subprocess

import pytest

from tessera.errors import CompileError, DeviceError
from tessera.targets.amd import code_object, hip
from tessera.targets.amd.link import link, read

llvm = pytest.importorskip("llvmlite.binding")

KERNEL = """
target triple = "amdgcn-amd-amdhsa"
@shared = internal addrspace(3) global [2048 x i8] poison, align 64
@table = internal addrspace(4) constant [4 x i32] [i32 7, i32 11, i32 13, i32 17], align 16
define amdgpu_kernel void @first(ptr addrspace(1) %x, i64 %n) #0 {
  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %k = and i32 %i, 3
  %p = getelementptr i32, ptr addrspace(4) @table, i32 %k
  %v = load i32, ptr addrspace(4) %p
  %s = getelementptr i32, ptr addrspace(3) @shared, i32 %i
  store i32 %v, ptr addrspace(3) %s
  fence syncscope("workgroup") release
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire
  %w = load i32, ptr addrspace(3) @shared
  %q = getelementptr i32, ptr addrspace(1) %x, i32 %i
  store i32 %w, ptr addrspace(1) %q
  ret void
}
define amdgpu_kernel void @second(ptr addrspace(1) %x) #0 {
  store float 1.0, ptr addrspace(1) %x
  ret void
}
attributes #0 = { nounwind "amdgpu-flat-work-group-size"="256,256" "uniform-work-group-size"="true" }
!llvm.module.flags = !{!0}
!0 = !{i32 1, !"amdhsa_code_object_version", i32 500}
"""


def emitted(text: str, cpu: str) -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("amdgcn-amd-amdhsa").create_target_machine(cpu=cpu, opt=2)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = "amdgcn-amd-amdhsa", str(machine.target_data)
    return machine.emit_object(module)


@pytest.fixture(scope="module", params=["gfx90a", "gfx942", "gfx950"])
def linked(request) -> bytes:
    return link(emitted(KERNEL, request.param))


def test_kernels_and_what_they_need(linked):
    found = {k.name: k for k in code_object.kernels(linked)}
    assert set(found) == {"first", "second"}
    first = found["first"]
    assert first.shared_bytes == 2048 and first.private_bytes == 0 and first.wave == 64 and first.registers >= 8
    assert first.argument_bytes >= 16 and found["second"].shared_bytes == 0


def test_descriptors_lead_to_the_code(linked):
    for k in code_object.kernels(linked):
        assert k.entry % 256 == 0
        words = struct.unpack("<4I", code_object.code(linked, k))
        assert any(words) and words[0] not in (0, 0xFFFFFFFF)


def test_segments_do_not_share_pages(linked):
    header = code_object.EHDR.unpack_from(linked)
    loads = [p for p in (code_object.PHDR.unpack_from(linked, header[5] + i * 56) for i in range(header[10])) if p[0] == 1]
    assert [p[1] for p in loads] == [4, 5, 6]
    pages = [set(range(p[3] // 4096, (p[3] + p[6] - 1) // 4096 + 1)) for p in loads]
    assert not pages[0] & pages[1] and not pages[1] & pages[2]
    assert all(p[2] % 4096 == p[3] % 4096 for p in loads)


def test_constants_are_addressed_relative_to_the_code(linked):
    at = linked.index(struct.pack("<4i", 7, 11, 13, 17))
    header = code_object.EHDR.unpack_from(linked)
    assert header[1] == 3 and at < len(linked)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
def test_readelf_finds_nothing_wrong(linked, tmp_path):
    path = tmp_path / "k.hsaco"
    path.write_bytes(linked)
    out = subprocess.run(["readelf", "-hlSDsn", str(path)], capture_output=True, text=True, check=True)
    assert "Warning" not in out.stderr and "Error" not in out.stderr, out.stderr
    symbols = subprocess.run(["readelf", "--dyn-syms", "-W", str(path)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"OBJECT +GLOBAL +PROTECTED +\d+ first\.kd", symbols)
    assert re.search(r"FUNC +GLOBAL +PROTECTED +\d+ second$", symbols, re.M)


def test_what_kernels_do_not_have_is_refused():
    with pytest.raises(CompileError, match="writable data"):
        link(emitted(KERNEL.replace("@table = internal addrspace(4) constant", "@table = addrspace(1) global").replace(
            "ptr addrspace(4) @table", "ptr addrspace(1) @table").replace("ptr addrspace(4) %p", "ptr addrspace(1) %p"), "gfx942"))
    calling = KERNEL.replace("store float 1.0, ptr addrspace(1) %x", "call void @elsewhere()") + "\ndeclare void @elsewhere()\n"
    with pytest.raises(CompileError, match=r"'elsewhere', which nothing defines|relocation"):
        link(emitted(calling, "gfx942"))


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"MZ" + bytes(100)])
def test_something_else_is_refused(damage):
    with pytest.raises(CompileError, match="AMDGPU"):
        link(damage)
    with pytest.raises(CompileError, match="code object"):
        code_object.kernels(damage)


def test_cut_objects_are_refused():
    whole = emitted(KERNEL, "gfx942")
    assert len(read(whole).symbols) > 3
    for n in range(64, len(whole), 97):
        with pytest.raises(CompileError):
            link(whole[:n])


# -- the loader -----------------------------------------------------------------------------------------------------------------
class StandIn:
    """Answers as the HIP runtime does, with host memory for the device's."""

    def __init__(self):
        self.calls, self.memory, self.status = [], {}, 0

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            return self.status
        return call

    def hipGetErrorString(self, status):
        return f"hipError {status}".encode()

    def hipGetDeviceCount(self, n):
        n._obj.value = 1
        return 0

    def hipMalloc(self, pointer, size):
        if size.value > 1 << 20:
            return hip.OUT_OF_MEMORY
        block = ctypes.create_string_buffer(size.value)
        self.memory[ctypes.addressof(block)] = block
        pointer._obj.value = ctypes.addressof(block)
        return 0

    def hipMemcpy(self, to, source, size, direction):
        ctypes.memmove(to, source, size.value)
        return 0

    def hipModuleLoadData(self, handle, data):
        self.loaded = data.raw
        handle._obj.value = 1
        return 0

    def hipModuleGetFunction(self, function, module, name):
        if name == b"missing":
            return 500
        function._obj.value = 2
        return 0

    def hipModuleLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, params, extra):
        address = ctypes.cast(params[0], ctypes.POINTER(ctypes.c_void_p)).contents.value
        count = ctypes.cast(params[1], ctypes.POINTER(ctypes.c_int64)).contents.value
        self.launched = (gx, bx, shared, count)
        data = (ctypes.c_float * count).from_address(address)
        for i in range(count):
            data[i] *= 2
        return 0


@pytest.fixture
def runtime(monkeypatch):
    lib = StandIn()
    monkeypatch.setattr(hip, "library", lambda: lib)
    return lib


def test_the_loader_runs_a_kernel(runtime, linked):
    assert hip.available() and hip.device_count() == 1
    host = (ctypes.c_float * 4)(1, 2, 3, 4)
    buffer = hip.Buffer(16)
    buffer.upload(ctypes.addressof(host), 16)
    module = hip.Module(linked)
    assert runtime.loaded == linked
    module.launch("first", 3, 256, [buffer.pointer, ctypes.c_int64(4)], shared=64)
    hip.synchronize()
    buffer.download(ctypes.addressof(host), 16)
    assert list(host) == [2, 4, 6, 8] and runtime.launched == (3, 256, 64, 4)


def test_the_loader_reports_what_the_runtime_says(runtime, linked):
    with pytest.raises(DeviceError, match="allocating 2097152 bytes: hipError 2"):
        hip.Buffer(1 << 21)
    with pytest.raises(DeviceError, match="looking up the kernel 'missing'"):
        hip.Module(linked).function("missing")
    with pytest.raises(DeviceError, match="20 bytes do not fit a buffer of 16"):
        hip.Buffer(16).upload(0, 20)
    runtime.status = 719
    with pytest.raises(DeviceError, match="waiting for the device: hipError 719"):
        hip.synchronize()


def test_without_a_runtime(monkeypatch):
    monkeypatch.setattr(hip, "LIBRARIES", ("libno_such_runtime.so",))
    hip.library.cache_clear()
    try:
        assert not hip.available()
        with pytest.raises(DeviceError, match=r"HIP runtime .* was not found"):
            hip.device_count()
    finally:
        hip.library.cache_clear()
