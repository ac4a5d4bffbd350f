"""Checkpoints and models from elsewhere: safetensors files and Hugging Face model folders."""

from .hf import load_pretrained
from .safetensors import load_file, save_file

__all__ = ["load_file", "load_pretrained", "save_file"]
