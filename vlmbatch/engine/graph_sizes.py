"""Which CUDA graph a decode step runs on: few captures, each worth its time. No torch.

Capturing a graph, and the plain step that has to come before it, hold the host up for as long as
several steps take the device. Rows of padding cost little, since every step reads all weights
whatever its size. So a size is captured when it has been met often; until then its steps are padded
to a larger graph.
"""

from __future__ import annotations

from collections import Counter

_STEPS_ON_NEXT = 64  # padded to at most twice the rows, before a size gets a graph of its own
_STEPS_ON_ANY = 8  # padded further than that


class GraphSizes:
    """The sizes, in sequences, that there are graphs of, and which one is used next."""

    def __init__(self, max_num_seqs: int) -> None:
        self.captured: set[int] = set()
        self._largest = coarse_size(max_num_seqs)
        self._ran_plainly: set[int] = set()
        self._refused: set[int] = set()
        self._met: Counter[int] = Counter()

    def choose(self, num_seqs: int) -> int | None:
        """The size of the graph for a step, to be captured if it is not; None: run it plainly.

        A size runs plainly before it is captured: kernels are compiled and loaded then, which a
        capture could not bear.
        """
        fine, coarse = padded_size(num_seqs), coarse_size(num_seqs)
        if fine in self.captured:
            return fine
        self._met.update({fine, coarse})
        size = fine if self._met[fine] > _STEPS_ON_NEXT else coarse
        if size in self.captured:
            return size
        larger = min((other for other in self.captured if other >= num_seqs), default=None)
        if larger is None:
            # Batches grow until the pool is full: the next steps are to find room as well.
            size = min(coarse_size(num_seqs * 3 // 2), self._largest)
        elif self._met[size] <= (_STEPS_ON_NEXT if larger <= 2 * num_seqs else _STEPS_ON_ANY):
            return larger
        if size in self._refused:
            return larger
        if size not in self._ran_plainly:
            self._ran_plainly.add(size)
            return None
        return size

    def refuse(self, size: int) -> None:
        """Its capture failed: its steps run on larger graphs or plainly from now on."""
        self._refused.add(size)


def padded_size(num_seqs: int) -> int:
    """The number of sequences that a graph made for ``num_seqs`` has.

    Steps grow with the size: small batches lose little in rows, large ones little in share.
    """
    for limit, step in ((8, 1), (64, 8), (256, 16)):
        if num_seqs <= limit:
            return -(-num_seqs // step) * step
    return -(-num_seqs // 32) * 32


def coarse_size(num_seqs: int) -> int:
    """The next of few sizes: powers of 2, and three between two of them from 64 on."""
    power = 1 << (num_seqs - 1).bit_length()
    step = max(power // 8, 1) if power > 64 else power
    return -(-num_seqs // step) * step
