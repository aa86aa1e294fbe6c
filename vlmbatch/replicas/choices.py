"""Rows that are asked for one of a few classes: each class is scored, and the likeliest answers.

The classes of a row are a tree of tokens. A request for the token behind the prompt computes the
prompt, and tells how likely each first token is; then the other branching points follow, all in
one step, which find the prompt in the prefix cache. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.composed import Composition, Parts
from vlmbatch.replicas.replica import Completion
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
        before = tokenizer.piece(behind)
        ends_in_text = tokenizer.has_text(behind) and bool(before) and not before[-1].isspace()
        paths = _paths(choices, tokenizer, before, follows_text=ends_in_text)
        if (problem := _not_told_apart(choices, paths)) is not None:
            raise RowError(ErrorCode.SAMPLING_INVALID, problem)
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
                ends = [scores[path][end] for end in self.ends]
                total += max(ends) + math.log(sum(math.exp(end - max(ends)) for end in ends))
            found.append(total)
        return found


def check_choices(choices: Sequence[str], tokenizer: Tokenizer) -> None:
    """Refuse classes of a whole run that are the same behind a prompt that ends in text.

    Raises:
        ConfigError: a class has no tokens, or two have the same.
    """
    paths = _paths(choices, tokenizer, _ANCHORS[0], follows_text=True)
    if (problem := _not_told_apart(choices, paths)) is not None:
        raise ConfigError(f"--choices: {problem}: leave it out, or write it otherwise")


def _not_told_apart(choices: Sequence[str], paths: Sequence[Path]) -> str | None:
    """What is wrong with classes of these tokens."""
    for number, path in enumerate(paths):
        if not path:
            return f"choice {choices[number]!r} has no tokens"
        if path in paths[:number]:
            twin = choices[paths.index(path)]
            return f"choice {choices[number]!r} has the same tokens as {twin!r}"
    return None


def _paths(
    choices: Sequence[str], tokenizer: Tokenizer, before: str, *, follows_text: bool
) -> list[Path]:
    return [_tokens(each, tokenizer, before, follows_text=follows_text) for each in choices]


def _tokens(choice: str, tokenizer: Tokenizer, before: str, *, follows_text: bool) -> Path:
    """A class's tokens as they would stand behind ``before``, the text of a prompt's last one.

    That may be with a space: behind text that does not end with one, as in "Answer: yes". Behind
    a special token there is none.
    """
    space = " " if follows_text and not choice[0].isspace() else ""
    for anchor in (before, *_ANCHORS):
        start = tokenizer.encode(anchor, add_special_tokens=False)
        whole = tokenizer.encode(f"{anchor}{space}{choice}", add_special_tokens=False)
        if whole[: len(start)] == start:
            return tuple(whole[len(start) :])
    return tuple(tokenizer.encode(choice, add_special_tokens=False))


class ChoiceScorer:
    """Composes requests that have choices."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._trees: dict[tuple[tuple[str, ...], int], ChoiceTree] = {}  # most rows have the same

    def compose(self, request: Request) -> Composition | None:
        """See ``Compose``.

        Raises:
            RowError: the classes cannot be told apart, or transformers answers.
        """
        choices = tuple(request.sampling.choices)
        if not choices:
            return None
        if request.inputs is not None:
            raise RowError(
                ErrorCode.SAMPLING_INVALID,
                "choices cannot be scored where transformers answers: leave them out",
            )
        return _Scoring(request, self._tree(choices, request.token_ids[-1]))

    def _tree(self, choices: tuple[str, ...], behind: int) -> ChoiceTree:
        known = self._trees.get((choices, behind))
        if known is None:
            if len(self._trees) == _MAX_TREES:
                self._trees.clear()
            known = ChoiceTree.of(choices, self._tokenizer, self._eos_token_ids, behind)
            self._trees[choices, behind] = known
        return known


class _Scoring:
    """A request whose classes are being scored: a part for each beginning of a class."""

    def __init__(self, request: Request, tree: ChoiceTree) -> None:
        self._request = request
        self._tree = tree
        self._branches = tree.branches()
        self._scores: dict[Path, dict[int, float]] = {}
        self._first: Completion | None = None

    def first(self) -> Parts:
        return {(): self._part(())}

    def take(self, name: Hashable, completion: Completion) -> Parts | Completion:
        path = cast(Path, name)
        self._scores[path] = dict(completion.logprobs[0].top)
        if self._first is None:
            self._first = completion
            others: Parts = {path: self._part(path) for path in self._branches if path}
            if others:
                return others
        if len(self._scores) < len(self._branches):
            return {}
        logprobs = self._tree.logprobs(self._scores)
        best = logprobs.index(max(logprobs))
        choices = zip(self._request.sampling.choices, logprobs, strict=True)
        return Completion(
            self._request.index,
            self._tree.paths[best],
            "stop",
            self._first.cached_tokens,
            self._first.first_token_at,
            choices=tuple(choices),
        )

    def failure(self, name: Hashable, error: RowError) -> RowError:
        return _of_class(error, len(cast(Path, name)))

    def _part(self, path: Path) -> Request:
        return _behind(self._request, path, self._branches[path])


def _of_class(error: RowError, num_tokens: int) -> RowError:
    """What it says of lengths is of the prompt and so many tokens of a class."""
    if not num_tokens:
        return error
    more = f"with the first {num_tokens} tokens of a class behind the prompt: "
    return RowError(error.code, f"{more}{error.message}")


def _behind(request: Request, path: Path, scored: tuple[int, ...]) -> Request:
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
        token_ids=[*request.token_ids, *path],
        sampling=_ONE_TOKEN,
        positions=positions,
        next_position=next_position,
        scored=scored,
    )
