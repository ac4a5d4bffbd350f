"""Loading the user's file for ``show`` and ``check``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import TesseraError


class LoadFailed(Exception):
    """The file cannot be used; the text says why, ready to print."""


def load_file(path: str) -> ModuleType:
    """Import a Python file under a name of its own (its ``__main__`` part does not run).

    Raises:
        LoadFailed: there is no such file, or importing it fails.
    """
    file = Path(path)
    if not file.is_file():
        raise LoadFailed(f"there is no file {path!r}")
    name = f"_tessera_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise LoadFailed(f"{path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except TesseraError as e:
        raise LoadFailed(str(e)) from e
    except (Exception, SystemExit) as e:
        tb = e.__traceback__.tb_next.tb_next if e.__traceback__ and e.__traceback__.tb_next else None
        raise LoadFailed(f"{path!r} cannot be imported:\n" + "".join(traceback.format_exception(type(e), e, tb))) from e
    finally:
        sys.path.pop(0)
    return module


def functions_of(module: ModuleType) -> dict[str, Any]:
    """The traced functions and kernels that the file itself defines, by name, in order."""
    from ..tiling.frontend import Kernel
    from ..tracing.function import TracedFunction
    return {name: value for name, value in vars(module).items()
            if isinstance(value, TracedFunction | Kernel) and getattr(value, "__module__", module.__name__) == module.__name__}


def is_kernel(fn: Any) -> bool:
    """True for a ``@ts.kernel``."""
    from ..tiling.frontend import Kernel
    return isinstance(fn, Kernel)


def kernel_types(kernel: Any) -> dict[str, Any] | None:
    """The parameters' tensor types as a kernel declares them; None where some are open."""
    from ..ir.core import TensorType
    from ..types.shapes import as_shape
    out = {}
    for name, p in kernel.declared.signature.parameters.items():
        spec = kernel.declared.specs.get(name)
        if spec is None and p.default is not p.empty:
            continue
        if spec is None or spec.dims is None or spec.dtype is None or any(d in ("?", "...") for d in spec.dims if isinstance(d, str)):
            return None
        out[name] = TensorType(spec.dtype, as_shape(spec.dims))
    return out


def say_error(text: str) -> None:
    """An error on standard error, in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text
    Console(stderr=True, soft_wrap=True, emoji=False).print(Text(text, style="red" if "\n" not in text else ""), highlight=False)
