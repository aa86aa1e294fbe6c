"""Attention behind one interface: a backend for each way of running it."""
