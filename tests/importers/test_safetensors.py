"""safetensors: round trips in every dtype, and hostile files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from tessera.errors import CheckpointError
from tessera.importers.safetensors import load_file, save_file


def write(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.uint16,
                                   np.int64, np.bool_])
def test_round_trip(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {"a.b": rng.integers(0, 2, (3, 5)).astype(dtype), "scalar": np.array(1, dtype), "empty": np.zeros((0, 4), dtype),
               "transposed": np.asfortranarray(rng.integers(0, 2, (4, 2)).astype(dtype))}
    save_file(tensors, tmp_path / "t.safetensors", {"format": "np"})
    back = load_file(tmp_path / "t.safetensors")
    assert set(back) == set(tensors) and back.metadata == {"format": "np"}
    for k, v in tensors.items():
        assert back[k].dtype == v.dtype and back[k].shape == v.shape and np.array_equal(back[k], v)


def test_reads_what_the_format_prescribes(tmp_path):
    path = write(tmp_path / "t", {"x": entry()}, np.array([1, 2], np.float32).tobytes())
    assert load_file(path)["x"].tolist() == [1, 2]
    with pytest.raises(CheckpointError, match="did you mean"):
        load_file(path)["X"]


@pytest.mark.parametrize(("header", "data", "length", "message"), [
    (b"", b"", 5, "truncated"),
    (b"{}", b"", 2**40, "refused"),
    (b"{", b"", None, "not JSON"),
    (b"[1]", b"", None, "not an object"),
    (b"\xff\xfe", b"", None, "not JSON"),
    (b"[" * 100000, b"", None, "not JSON"),
    (b'{"a": 1, "a": 2}', b"", None, "twice"),
    ({"x": {"dtype": "F32"}}, b"", None, "exactly dtype, shape"),
    ({"x": entry(dtype="F33")}, b"\0" * 8, None, "no dtype 'F33'"),
    ({"x": entry(shape=(-1,))}, b"\0" * 8, None, "natural"),
    ({"x": entry(shape=(True,))}, b"\0" * 8, None, "natural"),
    ({"x": entry(offsets=(0, 16))}, b"\0" * 8, None, "do not lie"),
    ({"x": entry(offsets=(8, 0))}, b"\0" * 8, None, "do not lie"),
    ({"x": entry(shape=(3,))}, b"\0" * 8, None, "takes 12 bytes"),
    ({"x": entry(shape=(2**40, 2**40))}, b"\0" * 8, None, "takes"),
    ({"x": entry(), "y": entry()}, b"\0" * 8, None, "overlaps"),
    ({"x": entry(offsets=(4, 12))}, b"\0" * 12, None, "unused"),
    ({"x": entry()}, b"\0" * 9, None, "truncated or damaged"),
    ({"__metadata__": {"a": 1}}, b"", None, "names to strings"),
])
def test_hostile_files_are_refused(tmp_path, header, data, length, message):
    with pytest.raises(CheckpointError, match=message):
        load_file(write(tmp_path / "t", header, data, length))


def test_missing_and_short_files(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        load_file(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="3 bytes"):
        load_file(tmp_path / "short")


def test_unknown_dtype_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="no name for int4"):
        save_file({"x": np.zeros(2, ml_dtypes.int4)}, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
