"""Kernels in C++, for layers in bfloat16 and for candidates, and how Python reaches them."""
