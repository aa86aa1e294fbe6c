"""CUDA graphs of decode steps: one launch for a step, instead of ten for each layer.

A graph repeats its kernels with the same shapes at the same addresses. So a step's inputs are
copied to where the graph reads them, padded to the next size there is a graph for; rows of the
padding write to a slot of the pool that nobody reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, SharedPrefixes
from vlmbatch.engine.batch import StepInputs
from vlmbatch.engine.graph_sizes import GraphSizes, coarse_size

Compute = Callable[[Tensor, Tensor, AttentionMetadata], Tensor]


class DecodeGraphs:
    """Graphs by number of sequences, each captured once its size has proved to be of use.

    Steps whose sequences share prefixes run other kernels: they have graphs of their own.
    """

    def __init__(
        self, max_num_seqs: int, max_blocks: int, spare_slot: int, device: torch.device
    ) -> None:
        """``max_blocks``: pages of the longest sequence. ``spare_slot``: where padding writes."""
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
        self.capture_seconds = 0.0
        self._memory = torch.cuda.graph_pool_handle()
        # The device's own stream cannot be captured.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def num_captured(self) -> int:
        return len(self._graphs)

    def run(self, inputs: StepInputs, compute: Compute) -> Tensor:
        """Hidden states (T, E) of a decode step; valid until the next call.

        ``compute`` takes token ids and positions, both (T,) int64, and the attention's metadata
        to hidden states. Raises what it raises, also where it is captured.
        """
        num_seqs = len(inputs.input_ids)
        shares = inputs.metadata.shared is not None
        sizes = self._sizes[shares]
        size = sizes.choose(num_seqs)
        if size is None:
            return compute(inputs.input_ids, inputs.positions, inputs.metadata)
        self._fill(inputs, num_seqs, size)
        if size not in sizes.captured:
            started = time.monotonic()
            try:
                self._graphs[size, shares] = self._capture(size, shares, compute)
            except RuntimeError:
                sizes.refuse(size)
                raise
            self.capture_seconds += time.monotonic() - started
            sizes.captured.add(size)
        graph, hidden = self._graphs[size, shares]
        graph.replay()
        return hidden[:num_seqs]

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
                hidden = compute(self._token_ids[:size], self._positions[:size], metadata)
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph, hidden
