"""Kernels of our own for the CPU, made by LLVM when a model is loaded."""
