"""The SIMT targets' shared emitter: Tile IR with layouts to the LLVM IR of one thread."""
