"""The stages of compilation: one ordered table.

A stage's name is its file extension.  Dumping (``TESSERA_DUMP``), overriding (``TESSERA_OVERRIDE``), the grammar checks
between stages, timing, ``tessera show`` and ``fn.schedule_ir`` … read this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CompileError, TesseraError
from ..ir import graph, sched, tile
from ..ir.core import Function
from ..ir.graph import GrammarError
from ..ir.text import ParseError, parse_function, parse_functions, print_function
from ..settings import DUMP, OVERRIDE, VERIFY


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as in ``--stage`` and as file extension.
        doc: what its artefact is.
        form: ``"function"`` (one IR function with those it calls), ``"kernels"`` (a tile function by symbol),
            ``"modules"`` (LLVM IR by module name) or ``"objects"`` (object files by module name).
        verify: the grammar check of one function of this level.
    """

    name: str
    doc: str
    form: str
    verify: Callable[[Function], None] | None = None

    def to_text(self, artefact: Any) -> str:
        """The artefact as text; object files have none."""
        if self.form == "function":
            return print_function(artefact)
        if self.form == "kernels":
            return "\n\n".join(print_function(f) for f in artefact.values())
        if self.form == "modules":
            return "\n".join(f"; ==== module {name}\n{text}" for name, text in artefact.items())
        raise CompileError("object files have no text form; ask for 'asm'")

    def from_text(self, text: str) -> Any:
        """The inverse of :meth:`to_text`.

        Raises:
            ParseError: the text is not of this stage.
        """
        if self.form == "function":
            return parse_function(text)
        if self.form == "kernels":
            return {f.name: f for f in parse_functions(text)}
        parts = re.split(r"^; ==== module (\S+)\n", text, flags=re.MULTILINE)
        return dict(zip(parts[1::2], parts[2::2], strict=True))


STAGES: tuple[Stage, ...] = (
    Stage("graph", "the Graph function after its passes: what is computed", "function", graph.verify),
    Stage("sched", "the Schedule program: launches, buffers, memory plan", "function", sched.verify),
    Stage("tile", "the Tile function of each kernel", "kernels", tile.verify),
    Stage("ll", "LLVM IR of each kernel and of the program", "modules"),
    Stage("o", "object files", "objects"),
)
BY_NAME: dict[str, Stage] = {s.name: s for s in STAGES}


def stage(name: str) -> Stage:
    """The stage called ``name``.

    Raises:
        CompileError: there is none.
    """
    if name not in BY_NAME:
        raise CompileError(f"there is no stage {name!r}; the stages are {', '.join(BY_NAME)} and asm")
    return BY_NAME[name]


class Exchange:
    """Writes artefacts to the dump directory and reads edited ones from the override directory.

    Args:
        label: file name without extension: the function's name and the start of its key.
        name: the function's name; an override file may be called after it alone.
    """

    def __init__(self, label: str, name: str):
        self.label, self.name = (re.sub(r"[^\w.-]", "_", s) for s in (label, name))  # they become file names
        self.dump_to: Path | None = DUMP.get()
        self.read_from: Path | None = OVERRIDE.get()
        self.check = bool(VERIFY.get())

    @property
    def active(self) -> bool:
        return self.dump_to is not None or self.read_from is not None

    def dump(self, s: Stage, artefact: Any) -> None:
        """Write a stage's artefact.

        Raises:
            CompileError: the directory cannot be written.
        """
        if self.dump_to is None:
            return
        try:
            self.dump_to.mkdir(parents=True, exist_ok=True)
            if s.form == "objects":
                for module, data in artefact.items():
                    (self.dump_to / f"{self.label}.{module}.{s.name}").write_bytes(data)
            else:
                (self.dump_to / f"{self.label}.{s.name}").write_text(s.to_text(artefact) + "\n")
        except OSError as e:
            raise CompileError(f"cannot write the stage {s.name!r} to {self.dump_to}: {e}") from e

    def override(self, s: Stage) -> Any | None:
        """The edited artefact of a stage, if there is one.

        Raises:
            CompileError: the file is not of this stage; the message has line and column.
        """
        if self.read_from is None or s.form == "objects":
            return None
        for stem in (self.label, self.name):
            path = self.read_from / f"{stem}.{s.name}"
            if path.is_file():
                try:
                    found = s.from_text(path.read_text())
                except ParseError as e:
                    raise CompileError(f"{path}: {e}") from e
                return found
        return None

    def verify(self, s: Stage, fn: Function) -> None:
        """Check a function against its level's grammar.

        Raises:
            CompileError: it is not well-formed.
        """
        if self.check and s.verify is not None:
            try:
                s.verify(fn)
            except TesseraError:
                raise
            except GrammarError as e:
                raise CompileError(f"the {s.name} stage of {self.name!r} is not well-formed: {e}") from e
