"""Tile programs at the explicit level, for GPUs with warp-group matrix units, copy engines and barriers in shared memory (sm_90a).

They read as a tutorial: ``matmul.py`` first, then ``attention.py``.
"""
