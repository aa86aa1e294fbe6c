"""Prefill beside decode: two lanes of steps, each on multiprocessors of its own.

Prefill is bound by arithmetic, decoding by reads of the KV pool. One after the other, each leaves
idle what the other needs. A third of the multiprocessors is enough to read at nearly the full rate
of the memory (see the kernel ``paged_decode``), so decode steps run there while prompts are
computed on the rest.

The lanes are ordered by these rules alone. A sequence goes over to decoding once the host has seen
the end of the step that computed its prompt. A step that writes prompts begins after all decode
steps launched before it: they may still write to blocks that were free when it was scheduled, or
write what it reads. What it copies stays held until the host has seen its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import EngineConfig
from vlmbatch.engine.decode_graphs import DecodeGraphs
from vlmbatch.engine.model_runner import LaunchedStep
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.sm_partition import partition

_DECODE_SHARE = 0.36  # of the multiprocessors: 48 of an H100's 132
_MIN_SMS = 64  # of a device that is worth dividing
DEPTH = 2  # steps of a lane under way: one that runs, one that begins when it ends


class Lane:
    """Steps one after another on a stream; ``stream`` None is the device's own."""

    def __init__(
        self, stream: torch.cuda.Stream | None = None, graphs: DecodeGraphs | None = None
    ) -> None:
        self.stream = stream
        self.graphs = graphs
        self.under_way: deque[LaunchedStep] = deque()
        self._members: deque[list[Sequence]] = deque()  # of each step under way
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def current(self, after: Lane | None = None) -> Iterator[None]:
        """Launch to this lane, behind all that ``after`` has launched."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            if after is not None and after._last is not None:
                self.stream.wait_event(after._last)
            yield
            self._last = self.stream.record_event()

    def push(self, step: LaunchedStep, members: list[Sequence]) -> None:
        """Add a step that has been launched, and the sequences that it computes tokens of."""
        self.under_way.append(step)
        self._members.append(members)

    def pop(self) -> LaunchedStep:
        """Take out the oldest step under way."""
        self._members.popleft()
        return self.under_way.popleft()

    def clear(self) -> None:
        """Forget the steps under way."""
        self.under_way.clear()
        self._members.clear()

    @property
    def sequences(self) -> set[Sequence]:
        """Those that steps under way compute tokens of, whether or not they sample one."""
        return {sequence for members in self._members for sequence in members}


class Lanes:
    """``prefill`` and ``decode``, side by side."""

    def __init__(self, prefill: Lane, decode: Lane) -> None:
        self.prefill = prefill
        self.decode = decode
        self.decode_waits = False  # a sequence was given up while its prompt was being computed


def make_lanes(
    config: EngineConfig,
    backend: AttentionBackend,
    device: torch.device,
    max_num_seqs: int,
    max_model_len: int,
    spare_slot: int,
) -> tuple[Lane, Lanes | None]:
    """The lane for steps of all kinds on the whole device, and two to share it where it can be."""
    if device.type != "cuda" or not backend.captures_decodes or not config.cuda_graphs:
        return Lane(), None
    max_blocks = -(-max_model_len // backend.block_size)

    def graphs(stream: torch.cuda.Stream | None) -> DecodeGraphs:
        return DecodeGraphs(max_num_seqs, max_blocks, spare_slot, device, stream)

    main = Lane(graphs=graphs(None))
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    if not config.overlap_prefill or num_sms < _MIN_SMS:
        return main, None
    # Partitions come in eights.
    split = partition(device, round(num_sms * _DECODE_SHARE / 8) * 8)
    if split is None:
        return main, None
    return main, Lanes(Lane(split.large), Lane(split.small, graphs(split.small)))
