"""Textual programs: the Graph and Tile notation of the specification's worked examples, parsed, printed and run."""

from .program import Program, parse
from .syntax import TextError

__all__ = ["Program", "TextError", "parse"]
