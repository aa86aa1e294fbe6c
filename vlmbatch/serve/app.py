"""The paths of the server."""

from __future__ import annotations

import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from vlmbatch.errors import VlmbatchError
from vlmbatch.openai.errors import SERVER_ERROR, ApiError
from vlmbatch.openai.responses import model_list, model_object
from vlmbatch.serve.completions import CompletionEndpoint
from vlmbatch.serve.dialect import CHAT, COMPLETION
from vlmbatch.serve.errors import error_response, on_bug, on_error, on_http_error
from vlmbatch.serve.hosts import CheckHost, is_loopback
from vlmbatch.serve.json_response import JsonResponse
from vlmbatch.serve.metrics import HEALTH_PATH, METRICS_PATH
from vlmbatch.serve.middleware import Observe, RequireKey
from vlmbatch.serve.service import Service

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(service: Service, listens_on: str) -> ASGIApp:
    """The ASGI application. The key, where there is one, is for ``/v1`` alone.

    ``listens_on``: the address of the socket that brings the requests.
    """
    config = service.config
    started = int(time.time())

    async def models(request: Request) -> Response:
        return JsonResponse(model_list([config.model_name], started))

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != config.model_name:
            raise ApiError(404, f"there is no model '{name:.200}'", code="model_not_found")
        return JsonResponse(model_object(name, started))

    async def health(request: Request) -> Response:
        if service.engine.healthy:
            return JsonResponse({"status": "ok"})
        return error_response(
            ApiError(503, "the engine has stopped", SERVER_ERROR, code="engine_stopped")
        )

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.render(), media_type=_METRICS_TYPE)

    guards = [] if config.api_key is None else [Middleware(RequireKey, key=config.api_key)]
    v1 = [
        Route("/chat/completions", CompletionEndpoint(CHAT, service), methods=["POST"]),
        Route("/completions", CompletionEndpoint(COMPLETION, service), methods=["POST"]),
        Route("/models", models),
        Route("/models/{name:path}", model),
    ]
    app: ASGIApp = Starlette(
        routes=[
            Mount("/v1", routes=v1, middleware=guards),
            Route(HEALTH_PATH, health),
            Route(METRICS_PATH, metrics),
        ],
        exception_handlers={
            VlmbatchError: on_error,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
    )
    if config.api_key is None and is_loopback(listens_on):
        app = CheckHost(app, config.host)
    return Observe(app, service.metrics)
