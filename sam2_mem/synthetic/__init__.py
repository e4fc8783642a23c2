"""Procedural video with exact ground truth. NumPy and OpenCV only."""
