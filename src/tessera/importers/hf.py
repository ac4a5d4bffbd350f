"""Hugging Face model folders: ``config.json``, ``model.safetensors`` (or its sharded index), ``tokenizer.json``.

Nothing is downloaded and no code from the folder is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedError
from .safetensors import SafetensorsFile


class _Shards(Mapping[str, np.ndarray]):
    """Several safetensors files as one mapping, opened as they are needed."""

    def __init__(self, folder: Path, weight_map: Mapping[str, str]):
        self.folder, self.weight_map = folder, dict(weight_map)
        self.files: dict[str, SafetensorsFile] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        shard = self.weight_map[name]
        if Path(shard).name != shard:
            raise CheckpointError(f"the index of {self.folder} names a file outside the folder: {shard!r}")
        if shard not in self.files:
            self.files[shard] = SafetensorsFile(self.folder / shard)
        return self.files[shard][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weight_map)

    def __len__(self) -> int:
        return len(self.weight_map)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise CheckpointError(f"{path} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def load_state(folder: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """The tensors of a model folder by name, memory-mapped.

    Raises:
        CheckpointError: the folder holds no safetensors checkpoint, or a damaged one.
    """
    root = Path(folder)
    single, index = root / "model.safetensors", root / "model.safetensors.index.json"
    if single.exists():
        return SafetensorsFile(single)
    if index.exists():
        return _Shards(root, read_json(index).get("weight_map", {}))
    raise CheckpointError(f"{root} holds neither model.safetensors nor model.safetensors.index.json")


def load_pretrained(folder: str | os.PathLike[str]) -> Any:
    """The model that a Hugging Face folder describes, with its weights.

    Raises:
        CheckpointError: the folder is incomplete or damaged.
        UnsupportedError: its architecture is not one that Tessera knows.
    """
    from ..models.bert import BertModel
    from ..models.gpt2 import GPT2Model

    known: dict[str, Any] = {"bert": BertModel, "gpt2": GPT2Model}
    config = read_json(Path(folder) / "config.json")
    kind = config.get("model_type")
    if kind not in known:
        raise UnsupportedError(f"no model of type {kind!r} is known; there are {', '.join(known)}")
    try:
        return known[kind].from_state(config, load_state(folder))
    except KeyError as e:
        raise CheckpointError(f"the checkpoint in {folder} lacks the tensor {e.args[0]!r}") from None


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """The folder's ``tokenizer.json`` as a ``tokenizers.Tokenizer`` without padding or truncation.

    Raises:
        CheckpointError: the file is missing or damaged.
        UnsupportedError: the ``tokenizers`` package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnsupportedError("reading tokenizer.json needs the package tokenizers: pip install 'tessera-lang[demo]'") from None
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises plain Exception
        raise CheckpointError(f"cannot read {path}: {e}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
