"""LLaVA-NeXT (Liu et al. 2024) and LLaVA-OneVision (arXiv:2408.03326): an image and its tiles."""
