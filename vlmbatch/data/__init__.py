"""From a manifest to validated rows, and from results to a file. Never imports torch."""
