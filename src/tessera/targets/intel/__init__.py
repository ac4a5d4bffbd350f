"""Intel's OpenCL devices: SPIR-V kernels, loaded by pyopencl."""
