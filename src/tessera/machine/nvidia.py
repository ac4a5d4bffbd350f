"""NVIDIA GPUs by compute capability."""

from __future__ import annotations

from .simt import SimtMachine

NVIDIA_SM80 = SimtMachine("NVIDIA Ampere (sm_80)", "nvidia", "nvptx64-nvidia-cuda", "sm_80", ("ptx80",), lanes=32,
                          block_threads=128, max_threads=1024, shared_bytes=163 << 10, units=108, resident_blocks=864,
                          global_bandwidth=2.0e12)
NVIDIA_SM90 = SimtMachine("NVIDIA Hopper (sm_90a)", "nvidia", "nvptx64-nvidia-cuda", "sm_90a", ("ptx86",), lanes=32,
                          block_threads=128, max_threads=1024, shared_bytes=227 << 10, units=132, resident_blocks=1056,
                          global_bandwidth=4.8e12, has_warp_groups=True)

__all__ = ["NVIDIA_SM80", "NVIDIA_SM90"]
