"""The tile programs of the library, one file a family; importing this room enters them into the table of templates."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
