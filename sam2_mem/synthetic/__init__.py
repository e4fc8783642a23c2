"""Procedural video with exact ground truth. Needs NumPy and OpenCV only, and Pillow to write masks."""
