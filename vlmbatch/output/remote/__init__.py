"""Outputs in object stores and on the Hugging Face Hub: looked at, fetched, and put whole."""
