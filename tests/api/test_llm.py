"""``LLM`` on the sample model: what its calls answer, and how."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import call
from llm_engine import engine_of
from PIL import Image

from vlmbatch import LLM, ImageFeatureData, ImagePixelData, RowError, SamplingParams
from vlmbatch.api import answering
from vlmbatch.errors import ConfigError, ErrorCode, UsageError

QUESTION = "USER: <image>\nWhat number is written? ASSISTANT:"
IMAGE = "images/1001000001.jpg"
ANSWER = "92"

# The founding document's example, as it stands there.
FOUNDING_EXAMPLE = """
llm = LLM(
    model="llava-hf/llava-1.5-7b-hf",
    image_input_type="pixel_values",
    image_token_id=32000,
    image_input_shape="1,3,336,336",
    image_feature_size=576,
)

prompt = "<image>" * 576 + (
    "\\nUSER: What is the content of this image?\\nASSISTANT:")

# Load the image using PIL.Image
image = ...

outputs = llm.generate({
    "prompt": prompt,
    "multi_modal_data": ImagePixelData(image),
})

for o in outputs:
    generated_text = o.outputs[0].text
    print(generated_text)
"""


def rows(samples: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (samples / "manifest.jsonl").read_text().splitlines()]


def request(samples: Path, prompt: str = QUESTION, image: str = IMAGE) -> Any:
    return {"prompt": prompt, "multi_modal_data": ImagePixelData(samples / image)}


def texts(outputs: Any) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_the_founding_example(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((samples / "tiny-llava/config.json").read_text())
    source = FOUNDING_EXAMPLE
    for name, ours in (
        ('"llava-hf/llava-1.5-7b-hf"', repr(str(samples / "tiny-llava"))),
        ("32000", str(config["image_token_index"])),
        ("336,336", "80,80"),
        ("576", "100"),
        ("image = ...", f"image = Image.open({str(samples / IMAGE)!r})"),
    ):
        assert name in source
        source = source.replace(name, ours)
    names: dict[str, Any] = {"LLM": LLM, "ImagePixelData": ImagePixelData, "Image": Image}
    exec(source, names)
    names["llm"].close()
    assert capsys.readouterr().out.strip() == "Five shapes and the number 92."


@pytest.mark.parametrize(
    ("argument", "given", "actual"),
    [
        ("image_token_id", 32000, "3"),
        ("image_input_shape", "1,3,336,336", "(1, 3, 80, 80)"),
        ("image_input_shape", (1, 3, 80, 81), "(1, 3, 80, 80)"),
        ("image_feature_size", 576, "100"),
    ],
)
def test_an_argument_that_contradicts_the_model(
    samples: Path, argument: str, given: Any, actual: str
) -> None:
    config = json.loads((samples / "tiny-llava/config.json").read_text())
    actual = str(config["image_token_index"]) if argument == "image_token_id" else actual
    with pytest.raises(ConfigError) as caught:
        LLM(samples / "tiny-llava", **{argument: given})
    assert argument in str(caught.value) and actual in str(caught.value)
    assert str(given).strip("(),").split(",")[-1].strip() in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_token": 3}, TypeError, "image_token"),
        ({"dtype": "float64"}, ConfigError, "dtype is one of auto, float32, bfloat16, float16"),
        ({"image_input_shape": (3, 80, 80)}, ConfigError, '"1,channels,height,width"'),
        ({"image_input_type": "pixels"}, ConfigError, "pixel_values, image_features"),
        ({"max_num_seqs": 0}, ConfigError, "at least 1, got 0"),
        ({"disable_image_processor": True}, ConfigError, "image_features"),
        ({"chat_template": "missing.jinja"}, ConfigError, "missing.jinja"),
        ({"chat_template": "llava"}, ConfigError, "one of the names llava-1.5"),
    ],
)
def test_refused_arguments(
    samples: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM(samples / "tiny-llava", **arguments)


def test_the_same_answers_as_the_command_line(llm: LLM, samples: Path, tmp_path: Path) -> None:
    manifest, output = samples / "manifest.jsonl", tmp_path / "out.parquet"
    assert call(["run", manifest, "-m", samples / "tiny-llava", "-o", output, "-q"]) == 1
    expected = pq.read_table(output).to_pylist()
    requests = [request(samples, row["prompt"], row["image"]) for row in rows(samples)]
    outputs = llm.generate(requests)
    assert [output.index for output in outputs] == list(range(len(requests)))
    for row, ours in zip(expected, outputs, strict=True):
        if row["status"] == "error":
            assert ours.outputs == () and ours.prompt_token_ids is None
            assert ours.error is not None and ours.error.code == row["error_code"]
            continue
        (completion,) = ours.outputs
        assert (completion.text, completion.finish_reason) == (row["text"], row["finish_reason"])
        assert len(completion.token_ids) == row["completion_tokens"]
        assert len(ours.prompt_token_ids or ()) == row["prompt_tokens"]
        assert ours.num_image_tokens == row["image_tokens"]


def test_each_request_is_checked_by_itself(llm: LLM, samples: Path) -> None:
    wrong = [request(samples, "<image>" * count + " What?") for count in (101, 99)]
    outputs = llm.generate([wrong[0], request(samples), wrong[1]])
    for output, found in ((outputs[0], "101"), (outputs[2], "99")):
        assert output.error is not None
        assert output.error.code is ErrorCode.IMAGE_TOKEN_MISMATCH
        assert "100" in output.error.message and found in output.error.message
    assert texts(outputs[1:2]) == [ANSWER]


def test_strict_raises_the_first_error(llm: LLM, samples: Path) -> None:
    requests = [request(samples), request(samples, image="images/none.jpg")]
    with pytest.raises(RowError, match=r"request 1: .*none\.jpg: no such file") as caught:
        llm.generate(requests, strict=True)
    assert caught.value.code is ErrorCode.IMAGE_MISSING
    assert texts(llm.generate(requests[:1], strict=True)) == [ANSWER]


def test_one_request_and_none(llm: LLM) -> None:
    (output,) = llm.generate("USER: Hello. ASSISTANT:", SamplingParams(max_tokens=2))
    assert output.prompt == "USER: Hello. ASSISTANT:"
    assert len(output.outputs[0].token_ids) <= 2
    assert llm.generate([]) == [] and llm.chat([]) == [] and list(llm.stream([])) == []


def test_parameters_for_each_request(llm: LLM) -> None:
    lengths = [3, 1, 2]
    params = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = llm.generate(["USER: Hello"] * 3, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 3
    with pytest.raises(ConfigError, match="4 requests, but 3 sampling_params"):
        llm.generate(["USER: Hello"] * 4, params)
    answered = llm.generate(iter(["USER: Hello"] * 4), iter(params))
    assert len(list(itertools.islice(answered, 3))) == 3
    with pytest.raises(ConfigError, match="more requests than the 3 sampling_params"):
        next(answered)


def test_requests_that_share_parameters_are_sampled_differently(llm: LLM) -> None:
    params = SamplingParams(temperature=5.0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(["USER: Hello"] * 4, params)
    assert len({output.outputs[0].token_ids for output in outputs}) == 4
    assert llm.generate(["USER: Hello"] * 4, params)[3].outputs == outputs[3].outputs
    alike = llm.generate(["USER: Hello"] * 2, [params] * 2)
    assert alike[0].outputs == alike[1].outputs


def test_stop_strings(llm: LLM, samples: Path) -> None:
    describe = request(samples, "USER: <image>\nDescribe the picture. ASSISTANT:")
    (plain,) = llm.generate(describe)
    text = plain.outputs[0].text
    word = text.split()[2]
    (stopped,) = llm.generate(describe, SamplingParams(stop=word))
    assert stopped.outputs[0].text == text[: text.index(word)]
    assert stopped.outputs[0].finish_reason == "stop"
    assert SamplingParams(stop=[word, "x"]).stop == (word, "x")


def test_an_iterator_is_read_a_bounded_number_ahead(llm: LLM) -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        for pulled in itertools.count(1):
            yield f"USER: Say {pulled}. ASSISTANT:"

    # As they finish: in order, a row that is long in preparation would keep others waiting.
    outputs = llm.stream(endless(), SamplingParams(max_tokens=2))
    taken = list(itertools.islice(outputs, 40))
    assert len({output.index for output in taken}) == 40
    outputs.close()
    # Those prepared, those in the engine and its queue, those that one step finished, and the one
    # that waits for a place.
    assert pulled <= 40 + answering._DEPTH + 4 * 8 + 1


def test_answers_that_wait_for_a_slow_one_are_bounded(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "_WINDOW", 20)
    pulled = 0

    def prompts() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield "USER: Hello"

    slow = SamplingParams(max_tokens=60, ignore_eos=True)
    params = itertools.chain([slow], itertools.repeat(SamplingParams(max_tokens=1)))
    outputs = llm.generate(prompts(), params)
    assert len(next(outputs).outputs[0].token_ids) == 60
    outputs.close()
    assert pulled <= 20 + 2


def test_stream_yields_as_requests_finish(llm: LLM) -> None:
    lengths = [40, 1, 20, 2]
    params = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = list(llm.stream(["USER: Hello"] * 4, params))
    assert [output.index for output in outputs] == [1, 3, 2, 0]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 20, 40]


@pytest.mark.parametrize(
    "error",
    [OSError(), SystemExit(), KeyboardInterrupt(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_what_an_iterator_raises_comes_after_the_answers_before_it(
    error: BaseException, llm: LLM
) -> None:
    def prompts() -> Iterator[str]:
        yield "USER: Hello"
        yield "USER: Hello again"
        raise error

    outputs = llm.generate(prompts(), SamplingParams(max_tokens=30, ignore_eos=True))
    assert [next(outputs).index, next(outputs).index] == [0, 1]
    with pytest.raises(type(error)) as caught:
        next(outputs)
    assert caught.value is error


def test_an_abandoned_iterator_frees_what_it_held(llm: LLM, samples: Path) -> None:
    for output in llm.stream([request(samples)] * 50):
        assert texts([output]) == [ANSWER]
        break
    assert engine_of(llm).num_unfinished == 0
    assert texts(llm.generate(request(samples))) == [ANSWER]


def test_an_interrupted_step_leaves_no_wrong_prefix(
    llm: LLM, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step registers the blocks that it is going to fill before it runs."""
    engine = engine_of(llm)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    prompt = QUESTION.replace("What", "Tell me, what")
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(request(samples, prompt))
    (output,) = llm.generate(request(samples, prompt))
    assert output.num_cached_tokens == 0
    assert texts([output]) == [ANSWER]


def test_one_call_at_a_time(llm: LLM) -> None:
    outputs = llm.stream(["USER: Hello"] * 3, SamplingParams(max_tokens=4))
    next(outputs)
    with pytest.raises(UsageError, match="busy with another call"):
        llm.generate("USER: Hello")
    raised = []

    def other_thread() -> None:
        try:
            llm.generate("USER: Hello")
        except UsageError as error:
            raised.append(error)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert len(raised) == 1
    assert len(list(outputs)) == 2
    assert len(llm.generate("USER: Hello", SamplingParams(max_tokens=1))) == 1


def chat_message(*images: object, kind: str = "image_url") -> dict[str, Any]:
    wrapped = [{"url": image} if kind == "image_url" else image for image in images]
    parts: list[dict[str, Any]] = [{"type": kind, kind: image} for image in wrapped]
    return {
        "role": "user",
        "content": [*parts, {"type": "text", "text": "What number is written?"}],
    }


def test_chat(llm: LLM, samples: Path) -> None:
    path = samples / IMAGE
    data = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    with Image.open(path) as picture:
        conversations = [
            [chat_message(str(path))],
            [chat_message(data)],
            [chat_message(path)],
            [chat_message(path.read_bytes())],
            [chat_message(picture)],
            [chat_message(picture, kind="image")],
            [chat_message(ImagePixelData(path), kind="image")],
        ]
        assert texts(llm.chat(conversations)) == [ANSWER] * len(conversations)
        assert texts(llm.chat(iter(conversations[:2]))) == [ANSWER] * 2
    (alone,) = llm.chat(conversations[0])
    assert texts([alone]) == [ANSWER] and alone.prompt is None
    assert texts(llm.stream([{"messages": conversations[0]}])) == [ANSWER]


def test_bad_chats_are_errors_of_their_own(llm: LLM, samples: Path) -> None:
    conversations: list[Any] = [
        [chat_message("https://example.org/a.jpg")],
        [chat_message("data:image/png;base64,@@@")],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": 5}],
        [[1]],
        [chat_message(str(samples / IMAGE))],
    ]
    outputs = llm.chat(conversations)
    codes = [output.error.code if output.error else None for output in outputs]
    assert codes == [
        ErrorCode.IMAGE_INVALID,
        ErrorCode.IMAGE_INVALID,
        ErrorCode.IMAGE_INVALID,
        ErrorCode.PROMPT_INVALID,
        ErrorCode.PROMPT_INVALID,
        None,
    ]
    assert texts(outputs[-1:]) == [ANSWER]


def test_chat_without_a_template(samples: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(samples / "tiny-llava", model)
    (model / "chat_template.jinja").rename(tmp_path / "template.jinja")
    conversation = [chat_message(str(samples / IMAGE))]
    with LLM(model, image_workers=0) as llm:
        with pytest.raises(ConfigError, match="no chat template"):
            llm.chat(conversation)
        assert texts(llm.generate(request(samples))) == [ANSWER]
    with LLM(model, chat_template=tmp_path / "template.jinja", image_workers=0) as llm:
        assert texts(llm.chat(conversation)) == [ANSWER]


def test_features_in_place_of_pixels(llm: LLM, samples: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    engine = engine_of(llm)
    requests = [row for row in rows(samples) if row["answer"] is not None]
    expected = texts(llm.generate([request(samples, r["prompt"], r["image"]) for r in requests]))
    features = []
    for row in requests:
        with Image.open(samples / row["image"]) as image:
            pixels = llm._model.processor.images.process(image.convert("RGB")).pixels
        tensors = [torch.from_numpy(pixels)]
        (given_out,) = engine.runner._model.extract_features(tensors, [])
        features.append(given_out[None])
    np.save(tmp_path / "features.npy", features[0].numpy())
    given: list[Any] = [
        tmp_path / "features.npy",
        features[1].numpy(),
        features[2][0],
        *features[3:],
    ]
    with LLM(
        samples / "tiny-llava", image_input_type="image_features", disable_image_processor=True
    ) as other:
        outputs = other.generate(
            [
                {"prompt": row["prompt"], "multi_modal_data": ImageFeatureData(each)}
                for row, each in zip(requests, given, strict=True)
            ]
        )
        assert texts(outputs) == expected
        (wrong,) = other.generate(request(samples))
        assert wrong.error is not None and wrong.error.code is ErrorCode.IMAGE_INVALID
        (wrong,) = other.generate(
            {"prompt": QUESTION, "multi_modal_data": ImageFeatureData(features[0][:, 1:])}
        )
        assert wrong.error is not None and wrong.error.code is ErrorCode.FEATURES_INVALID
        assert "(1, 99, " in wrong.error.message and "(100, " in wrong.error.message


def test_close_ends_iterators_and_processes(samples: Path) -> None:
    before = set(threading.enumerate())
    llm = LLM(samples / "tiny-llava", image_workers=1)
    outputs = llm.stream([request(samples)] * 20)
    assert texts([next(outputs)]) == [ANSWER]
    assert set(threading.enumerate()) > before
    engine = weakref.ref(engine_of(llm))
    llm.close()
    assert engine() is None
    llm.close()
    assert set(threading.enumerate()) == before  # each process has a thread that ends with it
    assert list(outputs) == []
    with pytest.raises(UsageError, match="closed"):
        llm.generate("USER: Hello")
