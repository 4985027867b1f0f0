"""Kernels in C++ for the CPU runtime in bfloat16: their sources, and how Python reaches them."""
