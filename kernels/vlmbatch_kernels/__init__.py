"""Numerical kernels, each with a pure-torch twin."""
