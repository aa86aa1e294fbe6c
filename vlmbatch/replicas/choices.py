"""Rows that are asked for one of a few classes: each class is scored, and the likeliest answers.

The classes of a row are a tree of tokens. A request for the token behind the prompt computes the
prompt, and tells how likely each first token is; then the other branching points follow, all in
one step, which find the prompt in the prefix cache. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.replica import Completion, Event, Replica, ReplicaStatus, RowFailure
from vlmbatch.types import Request

Path = tuple[int, ...]

_MAX_TREES = 256

# Texts that a class is tokenized behind where its first token would take in the prompt's last one.
_ANCHORS = (".", "0", "a")

_ONE_TOKEN = SamplingParams(max_tokens=1, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class ChoiceTree:
    """``paths``: each class's tokens. ``ends``: what ends an answer; empty where nothing need.

    A class whose tokens begin another's would be likelier than that one whatever the model says:
    then all are scored with the end of the answer behind them.
    """

    paths: tuple[Path, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(
        cls,
        choices: Sequence[str],
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
        behind: int,
    ) -> ChoiceTree:
        """``behind``: the last token of the prompt.

        Raises:
            RowError: a class has no tokens, or two have the same.
        """
        paths = [_tokens(choice, tokenizer, behind) for choice in choices]
        for number, path in enumerate(paths):
            if not path or path in paths[:number]:
                twin = f"the same tokens as {choices[paths.index(path)]!r}" if path else "no tokens"
                raise RowError(ErrorCode.SAMPLING_INVALID, f"choice {choices[number]!r} has {twin}")
        whole = set(paths)
        begins = any(path[:end] in whole for path in paths for end in range(1, len(path)))
        return cls(tuple(paths), tuple(sorted(eos_token_ids)) if begins else ())

    def branches(self) -> dict[Path, tuple[int, ...]]:
        """What may follow each beginning of a class, the empty one first."""
        found: dict[Path, dict[int, None]] = {(): {}}
        for path in self.paths:
            for end, token_id in enumerate(path):
                found.setdefault(path[:end], {})[token_id] = None
            if self.ends:
                found.setdefault(path, {}).update(dict.fromkeys(self.ends))
        return {path: tuple(following) for path, following in found.items()}

    def logprobs(self, scores: dict[Path, dict[int, float]]) -> list[float]:
        """Of each class as a whole, from those of the tokens behind each beginning."""
        found = []
        for path in self.paths:
            total = sum(scores[path[:end]][token_id] for end, token_id in enumerate(path))
            if self.ends:
                total += math.log(sum(math.exp(scores[path][end]) for end in self.ends))
            found.append(total)
        return found


def _tokens(choice: str, tokenizer: Tokenizer, behind: int) -> Path:
    """A class's tokens as they would stand behind a prompt's last one.

    That may be with a space: behind text that does not end with one, as in "Answer: yes". Behind
    a special token there is none.
    """
    before = tokenizer.piece(behind)
    follows_text = tokenizer.has_text(behind) and not before[-1:].isspace()
    space = " " if before and follows_text and not choice[0].isspace() else ""
    for anchor in (before, *_ANCHORS):
        start = tokenizer.encode(anchor, add_special_tokens=False)
        whole = tokenizer.encode(f"{anchor}{space}{choice}", add_special_tokens=False)
        if whole[: len(start)] == start:
            return tuple(whole[len(start) :])
    return tuple(tokenizer.encode(choice, add_special_tokens=False))


@dataclass(slots=True)
class _Row:
    """A request whose classes are being scored. ``asked``: indexes of what is under way."""

    request: Request
    tree: ChoiceTree
    branches: dict[Path, tuple[int, ...]]
    asked: dict[int, Path] = field(default_factory=dict)
    scores: dict[Path, dict[int, float]] = field(default_factory=dict)
    first: Completion | None = None


class ChoiceReplica:
    """A ``Replica`` whose requests may have choices, on one that knows nothing of them."""

    def __init__(
        self, replica: Replica, tokenizer: Tokenizer, eos_token_ids: Collection[int]
    ) -> None:
        self._replica = replica
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._indexes = count(-1, -1)  # of our own requests: others have none below 0
        self._rows: dict[int, _Row] = {}  # by the request's index
        self._owner: dict[int, _Row] = {}  # by the indexes of our own requests
        self._refused: list[RowFailure] = []
        self._trees: dict[tuple[tuple[str, ...], int], ChoiceTree] = {}  # most rows have the same

    @property
    def num_unfinished(self) -> int:
        return self._replica.num_unfinished + len(self._refused)

    @property
    def wants_requests(self) -> bool:
        return self._replica.wants_requests

    @property
    def fills_step(self) -> bool:
        return self._replica.fills_step

    @property
    def status(self) -> ReplicaStatus:
        return self._replica.status

    def submit(self, request: Request, *, stream: bool = False) -> None:
        choices = request.sampling.choices
        if not choices:
            self._replica.submit(request, stream=stream)
            return
        try:
            if request.inputs is not None:
                raise RowError(
                    ErrorCode.SAMPLING_INVALID,
                    "choices cannot be scored where transformers answers: leave them out",
                )
            tree = self._tree(tuple(choices), request.token_ids[-1])
        except RowError as error:
            self._refused.append(RowFailure(request.index, error))
            return
        row = self._rows[request.index] = _Row(request, tree, tree.branches())
        self._ask(row, ())

    def poll(self) -> list[Event]:
        events: list[Event] = [*self._refused]
        self._refused.clear()
        for event in self._replica.poll():
            row = self._owner.pop(event.index, None)
            if row is None:
                if event.index >= 0:  # else of a row that failed in this very step
                    events.append(event)
            elif isinstance(event, RowFailure):
                path = row.asked.pop(event.index)
                self.cancel(row.request.index)
                events.append(RowFailure(row.request.index, _of_class(event.error, len(path))))
            elif isinstance(event, Completion) and (done := self._take(row, event)) is not None:
                events.append(done)
        return events

    def cancel(self, index: int) -> None:
        row = self._rows.pop(index, None)
        if row is None:
            self._refused = [failure for failure in self._refused if failure.index != index]
            self._replica.cancel(index)
            return
        for own in row.asked:
            self._owner.pop(own, None)
            self._replica.cancel(own)

    def drop_waiting(self) -> None:
        self._replica.drop_waiting()

    def expect_no_more(self) -> None:
        self._replica.expect_no_more()

    def reset(self) -> None:
        self._rows.clear()
        self._owner.clear()
        self._refused.clear()
        self._replica.reset()

    def _tree(self, choices: tuple[str, ...], behind: int) -> ChoiceTree:
        known = self._trees.get((choices, behind))
        if known is None:
            if len(self._trees) == _MAX_TREES:
                self._trees.clear()
            known = ChoiceTree.of(choices, self._tokenizer, self._eos_token_ids, behind)
            self._trees[choices, behind] = known
        return known

    def _ask(self, row: _Row, path: Path) -> None:
        index = next(self._indexes)
        row.asked[index] = path
        self._owner[index] = row
        self._replica.submit(_behind(row.request, path, index, row.branches[path]))

    def _take(self, row: _Row, event: Completion) -> Completion | None:
        """Keep what a request of ours tells; the row's answer, if it is the last."""
        path = row.asked.pop(event.index)
        row.scores[path] = dict(event.logprobs[0].top)
        if row.first is None:
            row.first = event
            for other in row.branches:
                if other:
                    self._ask(row, other)
        if row.asked:
            return None
        del self._rows[row.request.index]
        logprobs = row.tree.logprobs(row.scores)
        best = logprobs.index(max(logprobs))
        choices = zip(row.request.sampling.choices, logprobs, strict=True)
        first = row.first
        return Completion(
            row.request.index,
            row.tree.paths[best],
            "stop",
            first.cached_tokens,
            first.first_token_at,
            choices=tuple(choices),
        )


def _of_class(error: RowError, num_tokens: int) -> RowError:
    """What it says of lengths is of the prompt and so many tokens of a class."""
    if not num_tokens:
        return error
    more = f"with the first {num_tokens} tokens of a class behind the prompt: "
    return RowError(error.code, f"{more}{error.message}")


def _behind(request: Request, path: Path, index: int, scored: tuple[int, ...]) -> Request:
    """A request for the scores of tokens behind the prompt and ``path``."""
    positions, next_position = request.positions, request.next_position
    if path and not (positions is None and next_position is None):
        num_tokens = len(request.token_ids)
        own = np.arange(num_tokens) if positions is None else positions
        first = num_tokens if next_position is None else next_position
        more = np.broadcast_to(first + np.arange(len(path)), (*own.shape[:-1], len(path)))
        positions, next_position = np.concatenate([own, more], axis=-1), first + len(path)
    return replace(
        request,
        index=index,
        token_ids=[*request.token_ids, *path],
        sampling=_ONE_TOKEN,
        positions=positions,
        next_position=next_position,
        scored=scored,
    )
