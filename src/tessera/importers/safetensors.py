"""The safetensors format: 8 bytes of header length, a JSON header, raw little-endian data.

Files are memory-mapped: a tensor's bytes are read when they are used.  Every field of the header is checked before
anything is touched, so a truncated or hostile file gives a :class:`~tessera.errors.CheckpointError` and nothing else.
Format: https://huggingface.co/docs/safetensors (layout) – data are contiguous, in header order of offsets, without gaps.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..types import dtypes as dt
from ..types.dtypes import DType, as_dtype

# The format's names for element types.
_FORMAT: dict[str, DType] = {
    "BOOL": dt.bool_, "U8": dt.uint8, "I8": dt.int8, "U16": dt.uint16, "I16": dt.int16, "U32": dt.uint32, "I32": dt.int32,
    "U64": dt.uint64, "I64": dt.int64, "F16": dt.f16, "BF16": dt.bf16, "F32": dt.f32, "F64": dt.f64,
    "F8_E4M3": dt.fp8_e4m3, "F8_E5M2": dt.fp8_e5m2, "C64": dt.complex64,
}
_NAME_OF = {d: n for n, d in _FORMAT.items()}
_MAX_HEADER = 100_000_000  # bytes; the reference implementation's limit


class SafetensorsFile(Mapping[str, np.ndarray]):
    """A read-only mapping from tensor names to arrays that view the mapped file.

    Raises:
        CheckpointError: the file is missing, truncated or malformed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                head = f.read(8)
                header_length = _header_length(self.path, head, size)
                raw = f.read(header_length)
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise CheckpointError(f"cannot read the checkpoint {self.path}: {e.strerror or e}") from None
        self._base = 8 + header_length
        self.metadata, self._entries = _parse_header(self.path, raw, size - self._base)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._entries:
            from ..errors import suggest
            raise CheckpointError(f"{self.path} holds no tensor called {name!r}{suggest(name, self._entries)}")
        dtype, shape, start, _ = self._entries[name]
        count = math.prod(shape)
        return np.frombuffer(self._map, dtype.np, count, self._base + start).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entries[name][1]


def _header_length(path: Path, head: bytes, size: int) -> int:
    if len(head) < 8:
        raise CheckpointError(f"{path} is no safetensors file: it has {len(head)} bytes, and the header's length alone takes 8")
    (n,) = struct.unpack("<Q", head)
    if n > _MAX_HEADER:
        raise CheckpointError(f"{path}: the header claims {n} bytes; more than {_MAX_HEADER} is refused")
    if 8 + n > size:
        raise CheckpointError(f"{path} is truncated: the header takes {n} bytes, and the file has {size - 8} after its length")
    return int(n)


Entry = tuple[DType, tuple[int, ...], int, int]


def _parse_header(path: Path, raw: bytes, data_size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: the header is not JSON: {e}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ maps names to strings")
    entries = {name: _parse_entry(path, name, e, data_size) for name, e in header.items()}
    end = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda t: (t[1][2], t[1][3])):
        if start != end:
            what = "overlaps the tensor before it" if start < end else f"leaves {start - end} bytes unused before it"
            raise CheckpointError(f"{path}: the tensor {name!r} {what}")
        end = stop
    if end != data_size:
        raise CheckpointError(f"{path}: the tensors take {end} bytes and the file has {data_size}; it is truncated or damaged")
    return metadata, entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out


def _parse_entry(path: Path, name: str, e: Any, data_size: int) -> Entry:
    def bad(why: str) -> CheckpointError:
        return CheckpointError(f"{path}: the entry of tensor {name!r} is malformed: {why}")

    def natural(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**63

    if not isinstance(e, dict) or set(e) != {"dtype", "shape", "data_offsets"}:
        raise bad("it has exactly dtype, shape and data_offsets")
    if e["dtype"] not in _FORMAT:
        raise bad(f"tessera reads no dtype {e['dtype']!r} (it reads {', '.join(_FORMAT)})")
    dtype, shape, offsets = _FORMAT[e["dtype"]], e["shape"], e["data_offsets"]
    if not isinstance(shape, list) or not all(map(natural, shape)):
        raise bad(f"the shape {shape!r} is not a list of natural numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(natural, offsets)):
        raise bad(f"the offsets {offsets!r} are not two natural numbers")
    start, stop = offsets
    if not start <= stop <= data_size:
        raise bad(f"its bytes {start} to {stop} do not lie in the file's {data_size} bytes of data")
    need = math.prod(shape) * dtype.itemsize
    if stop - start != need:
        raise bad(f"{dtype}{shape} takes {need} bytes, and the offsets give {stop - start}")
    return dtype, tuple(shape), start, stop


def load_file(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open a safetensors file; arrays are views of the mapped file, in its dtypes (bf16 and fp8 as ml_dtypes).

    Raises:
        CheckpointError: the file cannot be read.
    """
    return SafetensorsFile(path)


def save_file(tensors: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (or arrays) by name; the file appears whole or not at all.

    Raises:
        CheckpointError: a dtype that the format has no name for, or the file cannot be written.
    """
    arrays = {k: np.ascontiguousarray(np.asarray(v)).reshape(np.shape(v)) for k, v in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    # Widest elements first keeps every tensor aligned to its own element size.
    order = sorted(arrays, key=lambda k: (-arrays[k].dtype.itemsize, k))
    for name in order:
        a = arrays[name]
        dtype = as_dtype(a.dtype)
        if dtype not in _NAME_OF:
            raise CheckpointError(f"safetensors has no name for {dtype} (tensor {name!r}); convert it with .to(...) first")
        header[name] = {"dtype": _NAME_OF[dtype], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as f:
            f.write(struct.pack("<Q", len(raw)) + raw)
            for name in order:
                f.write(arrays[name].tobytes())
        os.replace(partial, target)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write the checkpoint {target}: {e.strerror or e}") from None
