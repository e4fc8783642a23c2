"""Policies compared with each other on the same videos."""
