"""Which model is measured, and with how many rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from vlmbatch.bench import setup, timed_run
from vlmbatch.bench.config import BenchConfig
from vlmbatch.bench.engines import BenchEngines
from vlmbatch.bench.setup import make_jobs, resolve_bench_model
from vlmbatch.bench.workloads import WORKLOADS, Workload
from vlmbatch.config import EngineConfig
from vlmbatch.errors import ConfigError
from vlmbatch.images.loading.pool import ImageWorkers

SAMPLE = Path(__file__).parents[2] / "samples/tiny-llava"
SMALL = Workload("small", (32, 24), 24, 4, questions=2, gpu_rows=80, cpu_rows=12)


def test_the_model_that_none_stands_for() -> None:
    config = BenchConfig(None, (SMALL,))
    assert resolve_bench_model(config, "cuda") == ("llava-1.5-7b", True)
    assert resolve_bench_model(config, "cpu") == (str(SAMPLE), False)


def test_without_the_sample_model_one_must_be_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup, "SAMPLE_MODEL", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"--model llava-1\.5-7b --random-weights"):
        resolve_bench_model(BenchConfig(None, (SMALL,)), "cpu")


def test_a_built_in_config_has_no_weights() -> None:
    model = "llava-1.5-7b"
    with pytest.raises(ConfigError, match="add --random-weights"):
        resolve_bench_model(BenchConfig(model, (SMALL,)), "cpu")
    config = BenchConfig(model, (SMALL,), random_weights=True)
    assert resolve_bench_model(config, "cpu") == (model, True)


@pytest.mark.parametrize(
    ("device", "rows", "warmup", "timed"),
    [("cuda", None, 64, 80), ("cpu", None, 8, 12), ("cpu", 4, 4, 4), ("cuda", 41, 40, 40)],
)
def test_rows_of_runs(
    device: str, rows: int | None, warmup: int, timed: int, tmp_path: Path
) -> None:
    config = BenchConfig(str(SAMPLE), (SMALL,), rows=rows)
    (job,) = make_jobs(config, SAMPLE, tmp_path, device)
    manifests = [Path(run.manifest.source) for run in (job.warmup, job.timed)]
    assert [len(path.read_text().splitlines()) for path in manifests] == [warmup, timed]
    assert job.num_images == timed // 2
    assert (job.timed.sampling.max_tokens, job.timed.sampling.ignore_eos) == (4, True)


def test_no_two_runs_share_an_image(tmp_path: Path) -> None:
    other = Workload("other", (32, 24), 24, 4, questions=1, gpu_rows=6, cpu_rows=6)
    make_jobs(BenchConfig(str(SAMPLE), (SMALL, other)), SAMPLE, tmp_path, "cpu")
    images = [path.read_bytes() for path in tmp_path.rglob("*.jpg")]
    assert len(images) == 4 + 6 + 6 + 6
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(
    ("name", "image_size", "images", "rows", "prompt_tokens", "max_tokens"),
    [
        ("classify", (640, 480), 1536, 1536, 600, 4),
        ("caption", (640, 480), 768, 768, 614, 128),
        ("vqa", (640, 480), 128, 1024, 593, 16),
        ("photos", (4032, 3024), 512, 512, 600, 4),
    ],
)
def test_the_table_of_workloads(
    name: str,
    image_size: tuple[int, int],
    images: int,
    rows: int,
    prompt_tokens: int,
    max_tokens: int,
) -> None:
    workload = WORKLOADS[name]
    assert workload.image_size == image_size
    assert workload.num_images(workload.gpu_rows) == images
    assert workload.gpu_rows == images * workload.questions == rows
    assert workload.text_tokens + 576 == prompt_tokens
    assert workload.max_tokens == max_tokens


def test_the_clock_starts_when_all_that_decodes_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run, where processes start while an engine is loaded."""
    told: list[str] = []

    def opened(*_: object) -> AbstractContextManager[None]:
        told.append("begun")
        return nullcontext()

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageWorkers, "wait_ready", lambda _: told.append("ready"))
    monkeypatch.setattr(timed_run, "open_output", opened)
    monkeypatch.setattr(timed_run, "answer_manifest", ended)
    engine = EngineConfig(device="cpu")
    config = BenchConfig(workloads=(WORKLOADS["classify"],), rows=1, engine=engine)
    (job,) = make_jobs(config, SAMPLE, tmp_path, "cpu")
    engines = BenchEngines(None, 1, 0, (torch.device("cpu"),))
    with pytest.raises(KeyboardInterrupt):
        timed_run.timed_run(job.timed, job.workload, engines)
    assert told == ["ready", "begun"]
