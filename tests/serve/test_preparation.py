"""Requests that are being prepared when the server ends."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest

from vlmbatch.config import SamplingParams
from vlmbatch.images.urls import ImageUrls
from vlmbatch.serve.engine_thread import EngineStoppedError
from vlmbatch.serve.errors import as_api_error
from vlmbatch.serve.preparation import Preparation
from vlmbatch.types import ImageRef


class Closed:
    """A processor, and what loads images, when that is closed."""

    def tokenize(self, row: object) -> None:
        pass

    def submit(self, ref: ImageRef) -> None:
        raise CancelledError

    def close(self) -> None:
        pass


def test_an_image_that_is_given_up_is_no_bug() -> None:
    closed: Any = Closed()
    preparation = Preparation(closed, closed, ImageUrls(), "m", None, threads=1)
    images = (ImageRef(url="https://a.example/a.jpg"),)

    def parse(body: object, defaults: SamplingParams, urls: ImageUrls) -> Any:
        return SimpleNamespace(model="m", images=images, prompts=("a",), sampling=defaults)

    with pytest.raises(EngineStoppedError) as caught:
        asyncio.run(preparation.prepare(b"{}", parse, SamplingParams()))
    preparation.close()
    assert as_api_error(caught.value).status == 503
