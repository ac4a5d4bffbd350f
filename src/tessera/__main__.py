"""``python -m tessera``."""

import sys

from .cli import main

sys.exit(main())
