"""Held-out questions to the sample models, answered by an engine in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import torch
from held_out import held_out_questions
from qwen_samples import CHAT_MANIFEST, chat_row, write_chat_manifest
from sample_model import answer, make_rows
from torch import Tensor

from vlmbatch.config import EngineConfig, ManifestConfig, SamplingParams, SessionConfig
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.loading import build_vision
from vlmbatch.images.loading.loader import InProcessLoader
from vlmbatch.models import fp8
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.text_model import TextModel
from vlmbatch.session.load import load_engine
from vlmbatch.session.open import Inputs, open_inputs
from vlmbatch.stages.prepare import prepare
from vlmbatch.types import FeatureImage, ImageInput, PixelImage, Request

SAMPLES = Path(__file__).parents[2] / "samples"
MAX_TOKENS = 48


@dataclass
class HeldOut:
    """A sample model, and questions about pictures that it was not trained on."""

    model: Path
    manifest: Path
    expected: list[str]

    @classmethod
    def llava(cls, num_rows: int, folder: Path) -> HeldOut:
        manifest = make_rows(num_rows, 4242, folder)
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        return cls(SAMPLES / "tiny-llava", manifest, [row["answer"] for row in rows])

    @classmethod
    def qwen(cls, num_rows: int, folder: Path) -> HeldOut:
        asked = held_out_questions(num_rows, 1_200_000_000)
        write_chat_manifest([chat_row(each, folder) for each in asked], folder / CHAT_MANIFEST)
        expected = [each.question.answer for each in asked]
        return cls(SAMPLES / "tiny-qwen-vl", folder / CHAT_MANIFEST, expected)

    @cached_property
    def requests(self) -> list[Request]:
        """The rows as an engine takes them."""
        config, inputs = self._open(EngineConfig())
        loader = InProcessLoader(config.image_limits, inputs.processor.images)
        requests: list[Request] = []
        for row in inputs.manifest.rows():
            prepared = prepare(row, inputs.processor, loader, known=lambda row: None)
            assert prepared.request is not None, prepared.error
            requests.append(prepared.request)
        return requests

    def _open(self, settings: EngineConfig) -> tuple[SessionConfig, Inputs]:
        config = SessionConfig(str(self.model), engine=settings)
        sampling = SamplingParams(max_tokens=MAX_TOKENS)
        return config, open_inputs(config, ManifestConfig(str(self.manifest)), sampling)

    def encode_once(self) -> None:
        """Have images as the tower's features: engines that differ only behind it save its time."""
        config, inputs = self._open(EngineConfig())
        assert isinstance(inputs.model, ModelConfig) and inputs.processor.images is not None
        tower = build_vision(self.model, inputs.model, config.engine, inputs.processor.images)
        known: dict[bytes, FeatureImage] = {}

        def encoded(image: ImageInput) -> FeatureImage:
            if image.content_hash not in known:
                assert isinstance(image, PixelImage)
                pixels = torch.from_numpy(image.pixels)
                features = tower.extract_features([pixels], [image.grid])[0].numpy()
                known[image.content_hash] = FeatureImage(features, image.content_hash, image.grid)
            return known[image.content_hash]

        self.requests = [
            replace(each, images=tuple(map(encoded, each.images))) for each in self.requests
        ]

    def engine(self, settings: EngineConfig) -> Engine:
        return load_engine(*self._open(settings))

    def accuracy(self, settings: EngineConfig) -> float:
        """Answers that are exactly right, of all."""
        _, inputs = self._open(settings)
        tokens, errors = answer(self.engine(settings), self.requests)
        assert not errors
        right = sum(
            inputs.processor.tokenizer.decode(ids).strip() == expected
            for ids, expected in zip(tokens, self.expected, strict=True)
        )
        return right / len(self.requests)

    def first_logits(self, settings: EngineConfig, num_rows: int) -> Tensor:
        """(num_rows, V), of the first token of each answer."""
        one_token = SamplingParams(max_tokens=1)
        requests = [replace(each, sampling=one_token) for each in self.requests[:num_rows]]
        logits: list[Tensor] = []
        compute = TextModel.compute_logits

        def kept(model: TextModel, hidden: Tensor) -> Tensor:
            logits.append(compute(model, hidden))
            return logits[-1]

        with patch.object(TextModel, "compute_logits", kept):
            answer(self.engine(settings), requests)
        return torch.cat(logits).float()


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Activations are quantized too, and multiplied in e4m3 by torch's form on the CPU."""
    with patch.object(fp8, "multiplies", lambda *args: True):
        yield
