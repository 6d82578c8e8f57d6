"""Faster paths of the same numbers: gradients by hand, compiled kernels, threads."""
