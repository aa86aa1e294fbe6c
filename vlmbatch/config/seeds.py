"""Seeds that follow from others: a row's from the run's, an answer's from its row's."""

_MASK = 2**64 - 1


def derive_seed(seed: int, index: int) -> int:
    """A seed below 2**63: the ``index``-th output of SplitMix64 started at ``seed``.

    SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1
