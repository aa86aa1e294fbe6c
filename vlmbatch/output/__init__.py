"""Rows out: results to files, and read back."""
