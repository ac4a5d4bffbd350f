"""NVIDIA GPUs: the SIMT emitter with warp-group matrix units, copy engines and barriers; PTX; the driver."""
