"""A model opened and loaded: what runs, the Python API and the server have in common."""
