"""Hugging Face models: ``hf.load(folder)``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import ArgumentError, CheckpointError, suggest
from .importers import load_pretrained


def load(name_or_path: str | os.PathLike[str], backend: str = "tessera") -> Any:
    """The model in a folder as Hugging Face lays it out (``config.json``, safetensors), with its weights.

    Raises:
        ArgumentError: another backend is asked for.
        CheckpointError: there is no such folder (nothing is downloaded), or it is incomplete or damaged.
        UnsupportedError: its architecture is not one that Tessera knows.
    """
    if backend != "tessera":
        raise ArgumentError(f"hf.load() has no backend {backend!r}{suggest(str(backend), ['tessera'])}", expected='"tessera"',
                            received=repr(backend))
    if not Path(name_or_path).is_dir():
        raise CheckpointError(f"there is no folder {str(name_or_path)!r}", sentence="Nothing is downloaded.",
                              hints=["Fetch the model's files first and give their folder: hf.load(path)"])
    return load_pretrained(name_or_path)


__all__ = ["load"]
