"""Layers: plain Python objects that own tensors, written with the public API alone."""

from .layers import Embedding, LayerNorm, Linear, RMSNorm
from .module import Module, Parameter, uninitialized

__all__ = ["Embedding", "LayerNorm", "Linear", "Module", "Parameter", "RMSNorm", "uninitialized"]
