"""``from tessera.dims import *``: the single capital letters as named sizes, for annotations such as ``Tensor[B, S, D]``."""

from __future__ import annotations

from string import ascii_uppercase

from .types.constraints import sym

globals().update({letter: sym(letter) for letter in ascii_uppercase})

__all__ = list(ascii_uppercase)
