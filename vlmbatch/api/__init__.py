"""The Python interface: requests as Python objects in, answers as Python objects out."""
