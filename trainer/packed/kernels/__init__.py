"""Triton kernels of a pack."""
