"""Kernels in CUDA C++, for what Triton's language cannot say: the sparse tensor cores."""
