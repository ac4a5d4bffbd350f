"""AMD data-centre GPUs."""

from __future__ import annotations

from .simt import SimtMachine

AMD_GFX942 = SimtMachine("AMD CDNA 3 (gfx942)", "amd", "amdgcn-amd-amdhsa", "gfx942", (), lanes=64, block_threads=256,
                         max_threads=1024, shared_bytes=64 << 10, units=304, resident_blocks=1216, global_bandwidth=5.3e12)
AMD_GFX950 = SimtMachine("AMD CDNA 4 (gfx950)", "amd", "amdgcn-amd-amdhsa", "gfx950", (), lanes=64, block_threads=256,
                         max_threads=1024, shared_bytes=160 << 10, units=256, resident_blocks=1024, global_bandwidth=8.0e12)

__all__ = ["AMD_GFX942", "AMD_GFX950"]
