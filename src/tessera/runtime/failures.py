"""Run-time checks that failed: from a site number to an error with the user's line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from ..errors import IndexOutOfRangeError, NumericalError, TesseraError
from ..types.dims import evaluate, parse_dim

if TYPE_CHECKING:
    from ..ir.core import Loc, Op
    from .manifest import Manifest


class Source(Protocol):
    """Where an executable came from; looked at only when something has to be shown."""

    def text(self, stage: str) -> str:
        """A stage's artefact as text."""

    def report(self) -> list[str]:
        """Lines about how it was made."""

    def location(self, site: int) -> Loc | None:
        """The user's line behind a check."""


_SIZE = re.compile(r"\bsize ([^\s,;]+)")


def check_number(op: Op) -> int | None:
    """The number of the check that an op of a schedule makes: a ``check``, or a template that checks its operands itself."""
    return op.attrs.get("site") if op.name in ("check", "template") else None


def raise_failure(manifest: Manifest, source: Source, env: Mapping[str, int], site: int, value: int) -> None:
    """Raise the error of check ``site``, which found ``value``.

    Raises:
        IndexOutOfRangeError, NumericalError: always one of them.
    """
    message = manifest.checks[site] if site < len(manifest.checks) else f"run-time check {site} found {{value}}"
    text = _SIZE.sub(lambda m: "size " + _number(m.group(1), env), message.replace("{value}", str(value)))
    kind: type[TesseraError] = IndexOutOfRangeError if re.search(r"\b(index|slice|out of)\b", text) else NumericalError
    raise kind(text, loc=source.location(site),
               sentence=f"The check is made while {manifest.name!r} runs, because it depends on the values.",
               hints=["inside 'with ts.unchecked():' such checks are left out"])


def _number(text: str, env: Mapping[str, int]) -> str:
    """A size expression's value, where it has one."""
    try:
        return str(evaluate(parse_dim(text), env))
    except (ValueError, KeyError):
        return text
