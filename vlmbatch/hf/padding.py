"""Whether a model answers a padded prompt as it answers the prompt alone: some miscount."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor

from vlmbatch.config import SamplingParams
from vlmbatch.errors import RowError
from vlmbatch.hf.failures import BatchFailedError
from vlmbatch.hf.processor import HfProcessor
from vlmbatch.types import ImageRef, Request, Row

_PROMPTS = ("<image>a", "<image>a prompt that is longer")
_SIDE = 64  # of the image in them, in pixels
_STEPS = 4  # the first is of the prompt, the others go on from the cache
# Of the spread of logits. Rounding, in 16 bits too, moves them by less; a wrong position by more.
_TOLERANCE = 0.25


class LogitsSource(Protocol):
    """See ``BatchGenerator``."""

    def logits(self, requests: Sequence[Request], num_steps: int) -> list[Tensor]: ...


def pads_safely(generator: LogitsSource, processor: HfProcessor) -> bool:
    """Try the model with a short prompt, alone and beside a longer one.

    Where it cannot be tried, it is taken not to.
    """
    try:
        short, long = (_request(processor, index, text) for index, text in enumerate(_PROMPTS))
        alone = generator.logits([short], _STEPS)
        padded = generator.logits([short, long], _STEPS)
    except (BatchFailedError, RowError):
        return False
    for before, after in zip(alone, padded, strict=False):
        first, second = before[0].float(), after[0].float()
        if not (first - second).abs().max() <= _TOLERANCE * first.std():
            return False
        if first.argmax() != second.argmax():
            break  # a tie: what follows is of another answer
    return True


def _request(processor: HfProcessor, index: int, prompt: str) -> Request:
    image = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128))
    row = Row(index, "", 0, "", prompt=prompt, images=(ImageRef(""),))
    encoded = processor.encode(processor.tokenize(row), [processor.images.process(image)])
    return Request(index, encoded.token_ids, SamplingParams(), inputs=encoded.inputs)
