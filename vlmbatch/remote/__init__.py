"""Object stores and other places that fsspec reaches, behind our own errors."""
