"""Rows in: files to rows, checked."""
