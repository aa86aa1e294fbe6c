"""What the server refuses: too much, too slow, too many, strangers; all, when the engine is dead.

The application without a socket, so that each test has limits of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from in_loop import in_loop
from server_process import MODEL, ROOT, chat_body

from vlmbatch.config import ImageLoading, SessionConfig
from vlmbatch.engine.engine import Engine
from vlmbatch.errors import ConfigError
from vlmbatch.images.urls import ImageUrls
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.serve.app import make_app
from vlmbatch.serve.config import ServeConfig
from vlmbatch.serve.server import check_context, make_service
from vlmbatch.serve.service import Service
from vlmbatch.session.load import load_engine
from vlmbatch.session.open import ModelInputs, open_model

Loaded = tuple[SessionConfig, ModelInputs, Engine]
CHAT = "/v1/chat/completions"
LONG = {"ignore_eos": True, "max_tokens": 390}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    session = SessionConfig(str(ROOT / MODEL), image_loading=ImageLoading(workers=0))
    inputs = open_model(session)
    return session, inputs, load_engine(session, inputs)


@asynccontextmanager
async def client_of(
    loaded: Loaded, listens_on: str = "127.0.0.1", **limits: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    session, inputs, engine = loaded
    config = ServeConfig(session=session, served_model_name=MODEL, **limits)
    replica = LocalReplica(engine, inputs.processor.tokenizer)
    service = make_service(config, inputs, replica, ImageUrls())
    transport = httpx.ASGITransport(make_app(service, listens_on), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client, service
    finally:
        await service.engine.close()
        service.preparation.close()
        engine.scheduler.check_integrity()
        assert engine.num_unfinished == 0


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@in_loop
async def test_strangers_are_refused(loaded: Loaded) -> None:
    async with client_of(loaded, api_key="secret") as (client, _):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic secret"}):
            response = await client.post(CHAT, json=chat_body(), headers=headers)
            assert refusal(response) == (401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models")).status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert (await client.post(CHAT, json=chat_body())).status_code == 200
        assert (await client.get("/health", headers={"Authorization": ""})).status_code == 200


@in_loop
@pytest.mark.parametrize("key", ["secret\n", " secret\r\n", "\tse cret "])
async def test_blanks_around_the_key_do_not_count(loaded: Loaded, key: str) -> None:
    async with client_of(loaded, api_key=key) as (client, _):
        client.headers["Authorization"] = f"Bearer {key.strip()}"
        assert (await client.get("/v1/models")).status_code == 200


@in_loop
async def test_every_response_has_an_id(loaded: Loaded) -> None:
    stream = chat_body(stream=True)
    async with client_of(loaded) as (client, _):
        responses = [
            await client.post(CHAT, json=chat_body()),
            await client.post(CHAT, json=stream),
            await client.post(CHAT, json={}),
            await client.get("/nothing"),
            await client.get("/health"),
            await client.get("/v1/models", headers={"Host": "evil.example"}),
        ]
        assert [each.status_code for each in responses] == [200, 200, 400, 404, 200, 403]
        ids = {each.headers["x-request-id"] for each in responses}
        assert len(ids) == len(responses)
        assert all(re.fullmatch("req_[0-9a-f]{32}", each) for each in ids)
        for given in ("0b59-a7:1/x", "x" * 128):
            response = await client.get("/health", headers={"X-Request-Id": given})
            assert response.headers["x-request-id"] == given
        for given in ("", "x" * 129, "two words", "<b>", "a\tb"):
            response = await client.get("/health", headers={"X-Request-Id": given})
            assert response.headers["x-request-id"].startswith("req_")


def error_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["message"])


@in_loop
async def test_on_loopback_without_a_key_no_name_of_a_web_site_counts(loaded: Loaded) -> None:
    ours = ["localhost:8000", "LOCALHOST", "localhost.", "a.localhost", "own-name:8000", ""]
    ours += ["127.0.0.1:80", "192.168.1.5", "[::1]:8000", "[fd00::1]", "host.docker.internal:1"]
    others = ["evil.example:8000", "evil.example.", "localhost.evil.example", "local"]
    others += ["127.0.0.1.evil.example", "[evil.example]", "evil.example]"]
    async with client_of(loaded, host="own-name") as (client, _):
        for path in ("/v1/models", "/health", "/metrics"):
            for host in ours:
                response = await client.get(path, headers={"Host": host})
                assert response.status_code == 200, host
            for host in others:
                response = await client.get(path, headers={"Host": host})
                assert refusal(response) == (403, "host_forbidden")
                assert host in error_of(response) and "--api-key" in error_of(response)


@in_loop
@pytest.mark.parametrize(
    "options", [{"api_key": "secret"}, {"listens_on": "0.0.0.0"}, {"listens_on": "::"}]
)
async def test_behind_a_key_or_on_a_network_any_name_counts(
    loaded: Loaded, options: dict[str, str]
) -> None:
    async with client_of(loaded, **options) as (client, _):
        headers = {"Host": "vlm.example.org", "Authorization": "Bearer secret"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.get("/health", headers=headers)).status_code == 200


@in_loop
async def test_a_body_that_is_too_large(loaded: Loaded) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 400

    async with client_of(loaded, max_request_bytes=1024) as (client, _):
        headers = {"Content-Type": "application/json"}
        for content in (b" " * 1025, pieces()):
            response = await client.post(CHAT, content=content, headers=headers)
            assert refusal(response) == (413, "request_too_large")
            assert "1,024 bytes" in response.text


@in_loop
async def test_a_body_that_does_not_come(loaded: Loaded) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async with client_of(loaded, request_timeout_s=0.05) as (client, service):
        headers = {"Content-Type": "application/json"}
        response = await client.post(CHAT, content=pieces(), headers=headers)
        assert refusal(response) == (408, "timeout")
        assert service.slots.in_use == 0


@in_loop
async def test_an_answer_that_takes_too_long(loaded: Loaded) -> None:
    async with client_of(loaded, request_timeout_s=0.05) as (client, service):
        response = await client.post(CHAT, json=chat_body(**LONG))
        assert refusal(response) == (504, "timeout")
        await until(lambda: service.engine.status.kv_used_tokens == 0)


@in_loop
async def test_too_many_at_once(loaded: Loaded) -> None:
    async with client_of(loaded, max_concurrent_requests=2) as (client, service):
        under_way = [
            asyncio.create_task(client.post(CHAT, json=chat_body(**LONG))) for _ in range(2)
        ]
        await until(lambda: service.slots.in_use == 2)
        response = await client.post(CHAT, json=chat_body())
        assert refusal(response) == (429, "rate_limit_exceeded")
        assert int(response.headers["retry-after"]) > 0
        assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200, 200]
        assert (await client.post(CHAT, json=chat_body())).status_code == 200


@in_loop
async def test_several_images_where_they_are_allowed(loaded: Loaded) -> None:
    body = chat_body()
    content = body["messages"][0]["content"]
    content += content[1:]
    async with client_of(loaded, limit_images_per_prompt=2) as (client, _):
        response = await client.post(CHAT, json=body)
        assert response.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 200
        content += content[1:2]
        assert refusal(await client.post(CHAT, json=body)) == (400, "too_many_images")


@in_loop
async def test_a_dead_engine(loaded: Loaded) -> None:
    async with client_of(loaded) as (client, service):
        assert (await client.get("/health")).json() == {"status": "ok"}
        bodies = [chat_body(**LONG, stream=True), chat_body(**LONG)]
        tasks = [asyncio.create_task(client.post(CHAT, json=body)) for body in bodies]
        await until(lambda: service.engine.status.generation_tokens > 20)
        service.engine.stop("the engine has failed: broken")
        streamed, whole = await asyncio.gather(*tasks)
        *_, error, done, end = streamed.text.split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_stopped"
        assert (done, end) == ("data: [DONE]", "")
        assert refusal(whole) == (503, "engine_stopped")
        assert refusal(await client.post(CHAT, json=chat_body())) == (503, "engine_stopped")
        assert refusal(await client.get("/health")) == (503, "engine_stopped")


@pytest.mark.parametrize(
    "bug",
    [KeyError("a secret"), BaseException("a secret"), SystemExit("a secret"), StopIteration()],
    ids=lambda bug: type(bug).__name__,
)
def test_a_bug_is_a_500_that_tells_nothing(
    bug: BaseException, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise bug

    @in_loop
    async def ask() -> None:
        async with client_of(loaded) as (client, service):
            with monkeypatch.context() as patch:
                patch.setattr("vlmbatch.serve.preparation.prepare", broken)
                response = await client.post(CHAT, json=chat_body())
            assert refusal(response) == (500, "internal_error")
            assert "secret" not in response.text
            assert service.slots.in_use == 0
            assert (await client.post(CHAT, json=chat_body())).status_code == 200

    ask()


@in_loop
async def test_metrics(loaded: Loaded) -> None:
    async with client_of(loaded) as (client, _):
        assert (await client.post(CHAT, json=chat_body())).status_code == 200
        await client.get("/anything")
        text = (await client.get("/metrics")).text
    total = loaded[2].kv_cache_tokens
    for line in (
        'vlmbatch_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'vlmbatch_requests_total{path="other",status="404"} 1.0',
        "vlmbatch_time_to_first_token_seconds_count 1.0",
        "vlmbatch_prompt_tokens_total 112.0",
        "vlmbatch_generation_tokens_total 4.0",
        "vlmbatch_requests_running 0.0",
        "vlmbatch_kv_cache_used_tokens 0.0",
        f"vlmbatch_kv_cache_tokens {float(total)}",
    ):
        assert f"\n{line}\n" in text


def test_a_kv_cache_smaller_than_the_context_is_refused(loaded: Loaded) -> None:
    session, inputs, _ = loaded
    small = replace(session, engine=replace(session.engine, kv_cache_tokens=256))
    engine = load_engine(small, inputs)
    with pytest.raises(ConfigError, match=r"256 tokens.*context length of 512"):
        check_context(LocalReplica(engine, inputs.processor.tokenizer).limits)


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 65536},
        {"request_timeout_s": 0.0},
        *({"api_key": key} for key in ("", " \n", "cl\u00e9", "a\nb", "a\x7f")),
    ],
)
def test_settings_out_of_range(loaded: Loaded, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServeConfig(session=loaded[0], **fields)
