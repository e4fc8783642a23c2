"""Modules at the import paths that they have in SAM 2."""
