"""``import tessera.op``: the op table :mod:`tessera.ops` by its other name; both are one module."""

import sys

from . import ops

sys.modules[__name__] = ops
