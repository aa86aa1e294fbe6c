"""Several images a row: the same answers from manifests, batch files, the server and Python."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from in_loop import in_loop
from in_process import call
from PIL import Image
from qwen_vl_case import SIZES, Case, make_case

from vlmbatch import LLM, SamplingParams
from vlmbatch.config import ImageResolution
from vlmbatch.images.urls import ImageUrls
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.serve.app import make_app
from vlmbatch.serve.config import ServeConfig
from vlmbatch.serve.server import make_service
from vlmbatch.session.load import load_engine
from vlmbatch.session.open import open_model

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TOKENS = 12
PROMPTS = [
    ("<image> or <image>, which is wider?", ["wide", "tall"]),
    ("<image><image><image> what is the same in all?", ["even", "small", "even"]),
]
# Parts of messages: text, and an image where there is a name of one.
CHATS: list[list[tuple[str, list[str]]]] = [
    [("user", ["Which is wider?", "@wide", "@tall"])],
    [("user", ["@small", "Look: ", "@even"]), ("assistant", ["Yes."]), ("user", ["@tall", "And?"])],
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("qwen3_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def expected(case: Case) -> list[str]:
    """What a run makes of the rows of a manifest: first prompts, then chats."""
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "image": [f"{name}.png" for name in names]} for prompt, names in PROMPTS
    ]
    for chat in CHATS:
        names = [part[1:] for _, parts in chat for part in parts if part.startswith("@")]
        messages = [
            {
                "role": role,
                "content": [
                    {"type": "image"} if part[0] == "@" else {"type": "text", "text": part}
                    for part in parts
                ],
            }
            for role, parts in chat
        ]
        rows.append({"messages": messages, "image": [f"{name}.png" for name in names]})
    manifest = case.manifest.parent / "several.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    output = case.manifest.parent / "several.parquet"
    command = ["run", manifest, "-m", case.model, "-o", output, "--max-tokens", TOKENS]
    assert call([*command, "-q", "--image-workers", 0]) == 0
    texts: list[str] = pq.read_table(output)["text"].to_pylist()
    assert len(set(texts)) == len(texts)
    return texts


def bodies(case: Case, *, embedded: bool) -> list[tuple[str, dict[str, Any]]]:
    """The same requests as OpenAI has them."""

    def url(name: str) -> str:
        data = (case.manifest.parent / f"{name}.png").read_bytes()
        encoded = base64.b64encode(data).decode()
        return f"data:image/png;base64,{encoded}" if embedded else f"{name}.png"

    common = {"model": str(case.model), "max_tokens": TOKENS, "temperature": 0}
    made: list[tuple[str, dict[str, Any]]] = [
        (COMPLETION, {**common, "prompt": prompt, "images": [url(name) for name in names]})
        for prompt, names in PROMPTS
    ]
    for chat in CHATS:
        messages = [
            {
                "role": role,
                "content": [
                    {"type": "image_url", "image_url": {"url": url(part[1:])}}
                    if part[0] == "@"
                    else {"type": "text", "text": part}
                    for part in parts
                ],
            }
            for role, parts in chat
        ]
        made.append((CHAT, {**common, "messages": messages}))
    return made


def text_of(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


def test_batch_files(case: Case, expected: list[str], tmp_path: Path) -> None:
    lines = [
        json.dumps({"custom_id": str(index), "method": "POST", "url": url, "body": body})
        for index, (url, body) in enumerate(bodies(case, embedded=False))
    ]
    requests = case.manifest.parent / "requests.jsonl"
    requests.write_text("\n".join(lines))
    output = tmp_path / "results.jsonl"
    command = ["run", requests, "-m", case.model, "-o", output, "-q", "--image-workers", 0]
    assert call(command) == 0
    answers = [json.loads(line)["response"]["body"] for line in output.read_text().splitlines()]
    assert [text_of(answer) for answer in answers] == expected


@asynccontextmanager
async def client_of(case: Case, **limits: Any) -> AsyncIterator[httpx.AsyncClient]:
    session = case.session()
    inputs = open_model(session)
    service = make_service(
        ServeConfig(session=session, **limits),
        inputs,
        LocalReplica(load_engine(session, inputs), inputs.processor.tokenizer),
        ImageUrls(),
    )
    transport = httpx.ASGITransport(make_app(service, "127.0.0.1"), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
    finally:
        await service.engine.close()
        service.preparation.close()


@in_loop
async def test_the_server(case: Case, expected: list[str]) -> None:
    async with client_of(case) as client:
        for (url, body), text in zip(bodies(case, embedded=True), expected, strict=True):
            response = await client.post(url, json=body)
            assert response.status_code == 200, response.text
            assert text_of(response.json()) == text
            streamed = await client.post(url, json={**body, "stream": True})
            chunks = [line[6:] for line in streamed.text.split("\n\n") if line[6:].startswith("{")]
            choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
            parts = [each.get("text") or each.get("delta", {}).get("content") for each in choices]
            assert "".join(part or "" for part in parts) == text


@in_loop
async def test_what_the_server_refuses(case: Case) -> None:
    (_, completion), *_, (_, chat) = bodies(case, embedded=True)
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    with_video = {**chat, "messages": [{"role": "user", "content": [video]}]}
    async with client_of(case) as client:
        for url, body, said in (
            (COMPLETION, {**completion, "prompt": "<image>"}, "2 images: expected"),
            (COMPLETION, {**completion, "prompt": "<image>" * 3}, "found 3"),
            (CHAT, with_video, "videos are not taken"),
        ):
            response = await client.post(url, json=body)
            assert response.status_code == 400
            assert said in response.json()["error"]["message"]
    async with client_of(case, limit_images_per_prompt=2) as client:
        response = await client.post(CHAT, json=chat)
        assert response.json()["error"]["code"] == "too_many_images"


OWN = {"max_pixels": 6000, "min_pixels": None}


def image_tokens(case: Case, url: str) -> int:
    """Of the request at its own resolution, told by its header."""
    images = open_model(case.session()).processor.images
    assert images is not None
    names = PROMPTS[0][1] if url == COMPLETION else [part[1:] for part in CHATS[0][0][1][1:]]
    at = images.at(ImageResolution(max_pixels=6000))
    return sum(at.grid(*SIZES[name][::-1]).num_tokens for name in names)


@in_loop
async def test_requests_at_a_resolution_of_their_own(case: Case) -> None:
    requests = [bodies(case, embedded=True)[index] for index in (0, len(PROMPTS))]
    async with client_of(case) as client:
        for url, body in requests:
            plain, own = [
                (await client.post(url, json=each)).json()["usage"]["prompt_tokens_details"]
                for each in (body, {**body, "mm_processor_kwargs": OWN})
            ]
            assert own["image_tokens"] == image_tokens(case, url) < plain["image_tokens"]
            more = {**body, "mm_processor_kwargs": {"max_pixels": 10**6}}
            error = (await client.post(url, json=more)).json()["error"]
            assert error["code"] == "resolution_invalid" and "above the run's" in error["message"]


def test_requests_from_python_at_a_resolution_of_their_own(case: Case) -> None:
    data = {"image": str(case.manifest.parent / "wide.png")}
    plain = {"prompt": "<image>", "multi_modal_data": data}
    image = Image.open(case.manifest.parent / "wide.png")
    conversation = {"messages": [{"role": "user", "content": [{"type": "image", "image": image}]}]}
    own = {"mm_processor_kwargs": {"max_pixels": 6000}}
    bad: list[dict[str, Any]] = [{"fps": 2}, {"max_pixels": "9"}, {"max_pixels": 10**6}]
    with LLM(case.model, image_workers=0, max_pixels=20_000) as llm:
        pairs = [[each, {**each, **own}] for each in (plain, conversation)]
        outputs = llm.generate(
            [*pairs[0], *pairs[1], *({**plain, "mm_processor_kwargs": each} for each in bad)],
            SamplingParams(max_tokens=2),
        )
    counts = [output.num_image_tokens for output in outputs[:4]]
    assert counts[:2] == counts[2:] and 0 < counts[1] < counts[0]
    codes = [output.error.code for output in outputs[4:] if output.error]
    assert codes == ["prompt_invalid", "resolution_invalid", "resolution_invalid"]


def test_from_python(case: Case, expected: list[str]) -> None:
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0)
    conversations = []
    for _, body in bodies(case, embedded=True)[len(PROMPTS) :]:
        conversations.append({"messages": body["messages"]})
    folder = case.manifest.parent
    prompts = [
        {
            "prompt": prompt,
            "multi_modal_data": {"image": [str(folder / f"{name}.png") for name in names]},
        }
        for prompt, names in PROMPTS
    ]
    with LLM(case.model, image_workers=0) as llm:
        outputs = llm.generate([*prompts, *conversations], sampling)
    assert [output.outputs[0].text for output in outputs] == expected
