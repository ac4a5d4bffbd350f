"""The command line: ``tessera demo | show | check | info | cache``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..settings import SettingError
from .load import say_error


def _parser() -> argparse.ArgumentParser:
    from .. import __version__
    from . import cache, check, demo, info, show
    p = argparse.ArgumentParser(prog="tessera", description="A typed tensor programming model and compiler.")
    p.add_argument("--version", action="version", version=f"tessera {__version__}")
    sub = p.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, show, check, info, cache):
        command.add_parser(sub)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 well, 1 an error, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SettingError as e:
        say_error(str(e))
        return 1
    except KeyboardInterrupt:
        return 130


__all__ = ["main"]
