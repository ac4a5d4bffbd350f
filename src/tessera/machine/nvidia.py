"""NVIDIA GPUs by compute capability."""

from __future__ import annotations

from dataclasses import replace

from .simt import SimtMachine

NVIDIA_SM80 = SimtMachine("NVIDIA Ampere (sm_80)", "nvidia", "nvptx64-nvidia-cuda", "sm_80", ("ptx80",), lanes=32,
                          block_threads=128, max_threads=1024, shared_bytes=163 << 10, units=108, resident_blocks=864,
                          global_bandwidth=2.0e12)
# GeForce RTX 30 and A10 are sm_86, GeForce RTX 40 and L4 are sm_89: the instructions of sm_80, less shared memory.
NVIDIA_SM86 = replace(NVIDIA_SM80, name="NVIDIA Ampere (sm_86)", cpu="sm_86", shared_bytes=99 << 10, units=84, resident_blocks=672,
                      global_bandwidth=7.6e11)
NVIDIA_SM89 = replace(NVIDIA_SM86, name="NVIDIA Ada (sm_89)", cpu="sm_89", units=128, resident_blocks=1024, global_bandwidth=1.0e12)
NVIDIA_SM90 = SimtMachine("NVIDIA Hopper (sm_90a)", "nvidia", "nvptx64-nvidia-cuda", "sm_90a", ("ptx86",), lanes=32,
                          block_threads=128, max_threads=1024, shared_bytes=227 << 10, units=132, resident_blocks=1056,
                          global_bandwidth=4.8e12, has_warp_groups=True)

__all__ = ["NVIDIA_SM80", "NVIDIA_SM86", "NVIDIA_SM89", "NVIDIA_SM90"]
