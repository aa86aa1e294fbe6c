"""A sequence's tokens as penalties look back on them. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlmbatch.types import Request


class TokenHistory:
    """Tokens of a request's prompt and answer, or of the answer alone where that is enough.

    ``max_len``: tokens that both can ever have.
    """

    def __init__(self, request: Request, max_len: int) -> None:
        num_prompt_tokens = len(request.token_ids)
        self._first = 0 if request.sampling.penalises_prompt else num_prompt_tokens
        self._images = [(span.start, span.length) for span in request.image_spans]
        self._tokens: NDArray[np.int32] = np.empty(max_len - self._first, np.int32)
        self._end = self._first  # of the known tokens taken over so far

    def up_to(self, token_ids: list[int], num_known: int, end: int) -> NDArray[np.int32]:
        """Those before ``end``, a view; -1 in the place of images and of what is not known yet.

        ``token_ids``: of prompt and answer, of which ``num_known`` are known, in this call no fewer
        than in the one before.
        """
        first = self._first
        if self._end == first and first == 0:
            self._tokens[:num_known] = token_ids[:num_known]
            for start, length in self._images:
                self._tokens[start : start + length] = -1
        else:  # behind the prompt: no images
            self._tokens[self._end - first : num_known - first] = token_ids[self._end : num_known]
        self._end = num_known
        self._tokens[num_known - first : end - first] = -1
        return self._tokens[: end - first]
