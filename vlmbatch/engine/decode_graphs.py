"""CUDA graphs of decode steps: one launch for a step, instead of ten for each layer.

A graph repeats its kernels with the same shapes at the same addresses. So a step's inputs are
copied to where the graph reads them, padded to the next size there is a graph for; rows of the
padding write to a slot of the pool that nobody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, SharedPrefixes
from vlmbatch.engine.batch import StepInputs

Compute = Callable[[Tensor, Tensor, AttentionMetadata], Tensor]


# To run plainly and to capture each take the host as long as some steps take the device. Rows of
# padding cost little beside the weights, which every step reads: a size makes do with a larger
# graph for so many steps before it gets its own.
_STEPS_ON_NEXT = 64  # where the graph has at most twice the rows
_STEPS_ON_ANY = 8


class GraphSizes:
    """Decides which graph a step runs on. Sizes count sequences; no torch."""

    def __init__(self, max_num_seqs: int) -> None:
        self.captured: set[int] = set()
        self._largest = coarse_size(max_num_seqs)
        self._ran_plainly: set[int] = set()
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
        if size not in self._ran_plainly:
            self._ran_plainly.add(size)
            return None
        self.captured.add(size)
        return size


class DecodeGraphs:
    """Graphs by number of sequences, each captured once its size has proved to be of use.

    Steps whose sequences share prefixes run other kernels: they have graphs of their own.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_blocks: int,
        spare_slot: int,
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """``max_blocks``: pages of the longest sequence. ``spare_slot``: where padding writes.

        ``stream``: the one that all calls come on, where it is not the device's own. A graph keeps
        the multiprocessors of the stream that it was captured on.
        """
        size = coarse_size(max_num_seqs)
        self._spare_slot = spare_slot
        self._token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        self._positions = torch.zeros(size, dtype=torch.int64, device=device)
        self._slots = torch.full((size,), spare_slot, dtype=torch.int64, device=device)
        self._seqlens = torch.ones(size, dtype=torch.int32, device=device)
        self._tables = torch.zeros(size, max_blocks, dtype=torch.int32, device=device)
        self._offsets = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._shared_lens = torch.zeros(size, dtype=torch.int32, device=device)
        self._tiles = torch.zeros(size // 2, 2, dtype=torch.int32, device=device)
        self._sizes = {shares: GraphSizes(max_num_seqs) for shares in (False, True)}
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._memory = torch.cuda.graph_pool_handle()
        # The device's own stream cannot be captured.
        self._stream = stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, inputs: StepInputs, compute: Compute) -> Tensor:
        """Logits (T, V) of a decode step; valid until the next call.

        ``compute`` takes token ids and positions, both (T,) int64, and the attention's metadata
        to logits.
        """
        num_seqs = len(inputs.input_ids)
        shares = inputs.metadata.shared is not None
        size = self._sizes[shares].choose(num_seqs)
        if size is None:
            return compute(inputs.input_ids, inputs.positions, inputs.metadata)
        self._fill(inputs, num_seqs, size)
        if (size, shares) not in self._graphs:
            self._graphs[size, shares] = self._capture(size, shares, compute)
        graph, logits = self._graphs[size, shares]
        graph.replay()
        return logits[:num_seqs]

    def _fill(self, inputs: StepInputs, num_seqs: int, size: int) -> None:
        metadata = inputs.metadata
        self._token_ids[:num_seqs] = inputs.input_ids
        self._positions[:num_seqs] = inputs.positions
        self._slots[:num_seqs] = metadata.slot_mapping
        self._seqlens[:num_seqs] = metadata.seqlens_k
        self._tables[:num_seqs, : metadata.block_table.shape[1]] = metadata.block_table
        if num_seqs < size:
            self._positions[num_seqs:size] = 0
            self._slots[num_seqs:size] = self._spare_slot
            self._seqlens[num_seqs:size] = 1
        if metadata.shared is not None:
            num_tiles = len(metadata.shared.tiles)
            self._shared_lens[:num_seqs] = metadata.shared.lens
            self._shared_lens[num_seqs:size] = 0
            self._tiles[:num_tiles] = metadata.shared.tiles
            self._tiles[num_tiles : size // 2] = 0

    def _capture(
        self, size: int, shares: bool, compute: Compute
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # A tile has two rows or more.
        shared = SharedPrefixes(self._shared_lens[:size], self._tiles[: size // 2])
        max_blocks = self._tables.shape[1]
        metadata = AttentionMetadata(
            cu_seqlens_q=self._offsets[: size + 1],
            seqlens_k=self._seqlens[:size],
            block_table=self._tables[:size],
            slot_mapping=self._slots[:size],
            query_lens=[1] * size,
            seqlens_k_host=[1] * size,
            num_decodes=size,
            max_seqlen_q=1,
            max_seqlen_k=max_blocks,
            shared=shared if shares else None,
        )
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._memory, capture_error_mode="thread_local")
            try:
                logits = compute(self._token_ids[:size], self._positions[:size], metadata)
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph, logits


def padded_size(num_seqs: int) -> int:
    """The number of sequences that a graph for ``num_seqs`` is captured with.

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
