"""Clips, losses and the training loop."""
