"""Model definitions, checkpoints and processors."""
