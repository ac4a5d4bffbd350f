"""Tile programs for machines whose threads run in warps: blocks of threads that hold tiles in registers and share fast memory.

They are written at the tile level, so that one text serves Intel, AMD and NVIDIA: the machine's description says how large tiles
are, and layouts, matrix instructions and copies that run ahead follow from it.  ``matmul.py`` comes first.
"""
