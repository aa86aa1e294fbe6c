"""LLaVA-1.5 (Liu et al. 2023) and its kin: a fixed number of tokens for every image."""
