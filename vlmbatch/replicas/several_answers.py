"""Requests for several answers, and for answers that are tried again where they loop.

Every answer and every attempt has a seed that follows from the request's: none depends on the
others, on what it is batched with, or on where it is computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import cast

from vlmbatch.config import SamplingParams
from vlmbatch.config.seeds import derive_seed
from vlmbatch.errors import RowError
from vlmbatch.replicas.composed import Composition, Parts
from vlmbatch.replicas.loops import loops
from vlmbatch.replicas.replica import Completion
from vlmbatch.types import Request

_FIRST_RISE = 0.1  # of the temperature, which is twice as much with each attempt
_MAX_TEMPERATURE = 1.0  # that attempts rise to


def several_answers(request: Request) -> Composition | None:
    """Composes requests for more than one answer or attempt; see ``Compose``."""
    sampling = request.sampling
    if sampling.n == 1 and not sampling.best_of_retries:
        return None
    return _SeveralAnswers(request)


def sampling_of(sampling: SamplingParams, number: int, attempt: int = 0) -> SamplingParams:
    """How one answer to a request is sampled; ``number`` and ``attempt`` count from 0.

    The first attempt at the first answer is what the request would get if it asked for one alone.
    Attempt a is 0.1 · 2^(a - 1) above the request's temperature, but no higher than 1.
    """
    seed = derive_seed(sampling.seed, number) if number else sampling.seed
    temperature = sampling.temperature
    for _ in range(attempt):
        seed = derive_seed(seed, 0)  # no answer's: theirs are counted from 1
    if attempt:
        risen = temperature + _FIRST_RISE * 2 ** (attempt - 1)
        temperature = max(temperature, min(risen, _MAX_TEMPERATURE))
    return replace(sampling, n=1, best_of_retries=0, seed=seed, temperature=temperature)


class _SeveralAnswers:
    """A request whose parts are (answer, attempt), both counted from 0."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._answers: dict[int, Completion] = {}
        self._retries = 0

    def first(self) -> Parts:
        # All at once: those that find another one computing the prompt wait for it.
        return {(number, 0): self._part(number, 0) for number in range(self._request.sampling.n)}

    def take(self, name: Hashable, completion: Completion) -> Parts | Completion:
        number, attempt = cast(tuple[int, int], name)
        wanted = self._request.sampling
        if wanted.best_of_retries and loops(completion.token_ids, completion.finish_reason):
            if attempt < wanted.best_of_retries:
                self._retries += 1
                return {(number, attempt + 1): self._part(number, attempt + 1)}
            completion.loops = True
        self._answers[number] = completion
        if len(self._answers) < wanted.n:
            return {}
        answers = [self._answers[each] for each in range(wanted.n)]
        whole = answers[0]
        whole.index = self._request.index
        whole.others = tuple(answers[1:])
        whole.retries = self._retries
        whole.loops = any(each.loops for each in answers)
        return whole

    def failure(self, name: Hashable, error: RowError) -> RowError:
        return error

    def _part(self, number: int, attempt: int) -> Request:
        return replace(self._request, sampling=sampling_of(self._request.sampling, number, attempt))
