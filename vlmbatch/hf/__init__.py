"""Models that have no family of ours: a checkpoint's own processor and class in transformers."""
