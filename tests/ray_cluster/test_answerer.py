"""``Answerer``: batches of columns in, the same with answers out."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray_nodes import ray_nodes
from worker_processes import ENGINE, worker_pids

from vlmbatch import SamplingParams
from vlmbatch.errors import ConfigError, UsageError
from vlmbatch.ray import Answerer
from vlmbatch.ray.answerer import ANSWER_SCHEMA

PROMPT = "USER: <image>\nWhat number is written? ASSISTANT:"
IMAGES = ["images/1001000001.jpg", "images/missing.jpg", "images/1001000005.jpg"]
SAMPLED = SamplingParams(max_tokens=16, temperature=1.0)


@pytest.fixture(scope="module")
def answerer(samples: Path) -> Iterator[Answerer]:
    answerer = Answerer(
        samples / "tiny-llava", sampling_params=SAMPLED, image_base=samples, image_workers=0
    )
    yield answerer
    answerer.close()


def batch(**columns: list[Any]) -> pa.Table:
    return pa.table({"prompt": [PROMPT] * 3, "image": IMAGES, **columns})


def test_rows_keep_their_columns_and_errors_are_values(answerer: Answerer) -> None:
    given = batch(temperature=[0.0] * 3, when=pa.array([1, 2, 3], pa.timestamp("ns")))
    answers = answerer(given)
    assert answers.select(given.column_names).equals(given)
    assert answers.schema.names == [*given.column_names, *ANSWER_SCHEMA.names]
    assert answers["status"].to_pylist() == ["ok", "error", "ok"]
    assert answers["text"].to_pylist()[:2] == ["92", None]
    assert answers["error_code"].to_pylist() == [None, "image_missing", None]
    assert answers["prompt_tokens"].to_pylist() == [112, None, 112]


def test_kinds_of_batches(answerer: Answerer, samples: Path) -> None:
    plain = answerer(batch(temperature=[0.0] * 3))
    record = answerer(batch(temperature=[0.0] * 3).to_batches()[0])
    assert isinstance(record, pa.RecordBatch)
    assert record.to_pylist() == plain.to_pylist()
    data = (samples / IMAGES[0]).read_bytes()
    embedded = pa.table({"prompt": [PROMPT], "image": [{"bytes": data, "path": None}]})
    embedded = embedded.append_column("temperature", pa.array([0.0]))
    assert answerer(embedded)["text"].to_pylist() == ["92"]
    nothing = answerer(batch().slice(0, 0))
    assert nothing.num_rows == 0 and nothing.schema.names[2:] == ANSWER_SCHEMA.names


def test_sampled_answers_do_not_depend_on_the_batch(answerer: Answerer) -> None:
    prompts = [f"USER: Say {word}. ASSISTANT:" for word in ("red", "blue", "green", "red")]
    whole = answerer(pa.table({"prompt": prompts}))["text"].to_pylist()
    pieces = [answerer(pa.table({"prompt": [each]}))["text"][0].as_py() for each in prompts]
    assert whole == pieces
    seeded = answerer(pa.table({"prompt": prompts, "seed": [1, 2, 3, 4]}))["text"].to_pylist()
    assert seeded[0] != seeded[3] and whole[0] == whole[3]


def test_it_is_pickled_without_its_model(answerer: Answerer) -> None:
    answerer(batch(temperature=[0.0] * 3))
    text = pickle.dumps(answerer)
    assert len(text) < 10_000
    assert isinstance(pickle.loads(text), Answerer)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"question": ["Hi"]}), r'no column "prompt" or "messages" \(present: question\)'),
        (pa.table({"prompt": ["Hi"], "text": ["x"]}), 'a column "text", as the answers have'),
    ],
)
def test_batches_that_are_refused(answerer: Answerer, table: pa.Table, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        answerer(table)


def test_arguments_that_are_refused() -> None:
    with pytest.raises(TypeError, match="no argument 'temprature'"):
        Answerer("x", temprature=1.0)
    with pytest.raises(ConfigError, match="max_num_seqs"):
        Answerer("x", max_num_seqs=0)


@pytest.mark.ray
def test_a_model_that_is_divided(samples: Path) -> None:
    """Over two processes, as over two GPUs; one of them dies between two batches."""
    divided = Answerer(
        samples / "tiny-llava",
        image_base=samples,
        image_workers=0,
        device="cpu",
        tensor_parallel_size=2,
    )
    assert divided(batch())["text"].to_pylist()[:2] == ["92", None]
    (first,) = worker_pids(os.getpid(), ENGINE)
    (second,) = worker_pids(first, ENGINE)
    os.kill(second, signal.SIGKILL)
    again = divided(batch())
    assert again["text"].to_pylist()[:2] == ["92", None]
    assert again["error_code"].to_pylist() == [None, "image_missing", None]
    divided.close()
    assert not worker_pids(os.getpid(), ENGINE)


@pytest.mark.ray
@pytest.mark.parametrize("ranks", [1, 2])
def test_ray_data(samples: Path, ranks: int) -> None:
    pytest.importorskip("pandas", reason='Ray Data is not installed: pip install "ray[data]"')
    data = pytest.importorskip("ray.data", reason='pip install "vlmbatch[ray]"')
    import ray

    arguments = {
        "model": str(samples / "tiny-llava"),
        "image_base": str(samples),
        "image_workers": 0,
        "device": "cpu",
    }
    with ray_nodes(2) as nodes:  # one for the rows, one for the model
        ray.init(address=nodes.address)
        try:
            answers = data.from_arrow(batch(n=[0, 1, 2])).map_batches(
                Answerer,
                fn_constructor_kwargs={**arguments, "tensor_parallel_size": ranks},
                concurrency=1,
                batch_format="pyarrow",
            )
            found = {row["n"]: (row["text"], row["error_code"]) for row in answers.take_all()}
        finally:
            ray.shutdown()
    assert sorted(found) == [0, 1, 2]
    assert found[0] == ("92", None) and found[1] == (None, "image_missing")
