"""Faster ways to the same numbers: handwritten gradients, compiled kernels, threads."""
