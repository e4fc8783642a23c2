"""Faster ways to compute the same numbers: CUDA graphs, attention kernels, oneDNN, transfers."""
