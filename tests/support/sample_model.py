"""The sample model's engine over held-out rows, without the stages around it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from make_samples import evaluation_rows, write_manifest

from vlmbatch.config import EngineConfig, ManifestConfig, SamplingParams, SessionConfig
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.outputs import SequenceFailure
from vlmbatch.errors import RowError
from vlmbatch.images.loading.loader import InProcessLoader
from vlmbatch.session.load import load_engine
from vlmbatch.session.open import Inputs, open_inputs
from vlmbatch.stages.prepare import prepare
from vlmbatch.types import Request

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples" / "tiny-llava"
MAX_TOKENS = 48


def make_rows(count: int, seed: int, folder: Path) -> Path:
    """Write a manifest of questions about scenes from ``seed`` on; three to five an image."""
    manifest = folder / "manifest.jsonl"
    write_manifest(evaluation_rows(count, seed, folder), manifest)
    return manifest


def one_row_an_image(manifest: Path, count: int) -> Path:
    """Write a manifest of the first row of each image beside ``manifest``."""
    lines = manifest.read_text().splitlines()
    first = {json.loads(line)["image"]: line for line in reversed(lines)}
    assert len(first) >= count
    path = manifest.with_name("distinct.jsonl")
    path.write_text("\n".join(list(first.values())[:count]) + "\n")
    return path


@dataclass
class SampleModel:
    """The rows of a manifest, ready for the engine."""

    config: SessionConfig
    inputs: Inputs
    requests: list[Request]

    @classmethod
    def open(cls, manifest: Path) -> SampleModel:
        config = SessionConfig(str(MODEL))
        sampling = SamplingParams(max_tokens=MAX_TOKENS)
        inputs = open_inputs(config, ManifestConfig(str(manifest)), sampling)
        loader = InProcessLoader(config.image_limits, inputs.processor.images)
        requests = []
        for row in inputs.manifest.rows():
            prepared = prepare(row, inputs.processor, loader, known=lambda row: None)
            assert prepared.request is not None, prepared.error
            requests.append(prepared.request)
        return cls(config, inputs, requests)

    def endless_requests(self, count: int, max_tokens: int = 200) -> list[Request]:
        """The first of them, each answered with ``max_tokens``; 200 and the prompt are over 256."""
        endless = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return [replace(request, sampling=endless) for request in self.requests[:count]]

    def engine(self, settings: EngineConfig) -> Engine:
        return load_engine(replace(self.config, engine=settings), self.inputs)


def answer(engine: Engine, requests: list[Request]) -> tuple[list[list[int]], dict[int, RowError]]:
    """The tokens of every request, and the errors of those that were given up, by their place."""
    sequences = [engine.add(request) for request in requests]
    errors = {}
    while engine.num_unfinished:
        for output in engine.step():
            if isinstance(output, SequenceFailure):
                errors[sequences.index(output.sequence)] = output.error
        engine.scheduler.check_integrity()
    return [sequence.output_token_ids for sequence in sequences], errors
