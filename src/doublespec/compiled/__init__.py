"""Functions of our own for the CPU, compiled by LLVM when they are first needed."""
