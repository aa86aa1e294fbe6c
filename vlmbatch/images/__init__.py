"""Bytes to pixels, wherever they come from."""
