"""``vlmbatch serve``: answer requests of OpenAI's API."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from typing import Annotated

import typer

from vlmbatch import log
from vlmbatch.commands import options
from vlmbatch.commands.checks import checked_model, image_arguments
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.values import parse_duration, parse_size
from vlmbatch.config import (
    IMAGE_TIMEOUT_S,
    EngineConfig,
    ImageLimits,
    ManifestConfig,
    PromptConfig,
    RunConfig,
)
from vlmbatch.errors import ConfigError, UsageError

ENGINE = EngineConfig()
LIMITS = ImageLimits()
REQUIRED = ("starlette", "uvicorn", "prometheus_client")
# On a CPU, torch and oneDNN keep code for each shape that they meet, by default for 1,024 of them.
# Steps of a server are of all sizes: the sample model's then take 0.4 GB, and with 128 no longer.
SHAPE_CACHES = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
_server = partial(typer.Option, show_envvar=False, rich_help_panel="Server")
_limits = partial(typer.Option, show_envvar=False, rich_help_panel="Limits")


def _time(text: str) -> str:
    parse_duration(text)
    return text


def _size(text: str) -> str:
    parse_size(text)
    return text


Host = Annotated[str, _server(metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, _server(metavar="N", min=0, max=65535, help="0 is one that is free.")]
ApiKey = Annotated[
    str | None,
    _server(metavar="KEY", help="Answer only who brings it; better set as VLMBATCH_API_KEY."),
]
ServedModelName = Annotated[
    str | None, _server(metavar="NAME", help="Name of the model in requests; absent: --model.")
]
LimitImages = Annotated[
    int, _limits("--limit-images-per-prompt", metavar="N", min=0, help="Images of one request.")
]
MaxRequestBytes = Annotated[
    str,
    _limits(metavar="SIZE", callback=_size, help="Size of a request's body, images included."),
]
MaxConcurrentRequests = Annotated[
    int, _limits(metavar="N", min=1, help="Requests worked on at once; others get status 429.")
]
RequestTimeout = Annotated[
    str, _limits(metavar="TIME", callback=_time, help="Time for one request.")
]
Grace = Annotated[
    str,
    _limits(
        metavar="TIME",
        callback=_time,
        help="Time for requests under way when the server is stopped.",
    ),
]


def serve(
    config: options.ConfigFile = None,
    model: options.Model = None,
    revision: options.Revision = None,
    tokenizer: options.TokenizerOption = None,
    chat_template: options.ChatTemplate = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    served_model_name: ServedModelName = None,
    allow_domain: options.AllowDomain = None,
    limit_images_per_prompt: LimitImages = 1,
    max_request_bytes: MaxRequestBytes = "32MiB",
    max_concurrent_requests: MaxConcurrentRequests = 256,
    request_timeout: RequestTimeout = "10m",
    grace: Grace = "20s",
    dtype: options.DTypeOption = ENGINE.dtype,
    device: options.DeviceOption = ENGINE.device,
    attention_backend: options.AttentionBackend = ENGINE.attention_backend,
    image_input_type: options.ImageInput = "pixel_values",
    image_token_id: options.ImageTokenId = None,
    image_input_shape: options.ImageInputShape = None,
    image_feature_size: options.ImageFeatureSize = None,
    strict_image_tokens: options.StrictImageTokens = False,
    image_processor: options.ImageProcessorOption = None,
    image_processor_revision: options.ImageProcessorRevision = None,
    max_image_pixels: options.MaxImagePixels = LIMITS.max_pixels,
    image_workers: options.ImageWorkers = None,
    image_timeout: options.ImageTimeout = IMAGE_TIMEOUT_S,
    max_num_seqs: options.MaxNumSeqs = ENGINE.max_num_seqs,
    max_batched_tokens: options.MaxBatchedTokens = ENGINE.max_batched_tokens,
    kv_cache_tokens: options.KvCacheTokens = None,
    max_model_len: options.MaxModelLen = None,
    no_prefix_caching: options.NoPrefixCaching = False,
    host_memory: options.HostMemory = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    log_format: options.LogFormat = "text",
) -> None:
    """Answer requests of OpenAI's API about images, over HTTP.

    /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics.
    SIGTERM, SIGINT or SIGHUP stops the server. Exits 0 when requests under way were
    answered within --grace, 143, 130 or 129 when some were given up, 2 when it cannot
    start as given.
    """
    log.configure(verbose=verbose, quiet=quiet, log_format=log_format)
    if image_input_type != "pixel_values":
        raise ConfigError(
            f"--image-input-type {image_input_type}: requests bring images, so that the server "
            "takes pixel_values only"
        )
    job = RunConfig(
        model=checked_model(model),
        revision=revision,
        tokenizer=tokenizer,
        manifest=ManifestConfig("-"),
        output="-",
        allowed_domains=tuple(allow_domain or ()),
        engine=EngineConfig(
            dtype=dtype,
            device=device,
            attention_backend=attention_backend,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_batched_tokens,
            kv_cache_tokens=kv_cache_tokens,
            max_model_len=max_model_len,
            enable_prefix_caching=not no_prefix_caching,
        ),
        image_arguments=image_arguments(
            image_input_type,
            image_token_id,
            image_input_shape,
            image_feature_size,
            strict_image_tokens,
            image_processor,
            image_processor_revision,
        ),
        image_limits=ImageLimits(max_pixels=max_image_pixels),
        image_workers=image_workers,
        image_timeout_s=image_timeout,
        host_memory=parse_size(host_memory),
        prompt=PromptConfig(chat_template=chat_template),
    )
    _check_extra()
    for name, capacity in SHAPE_CACHES.items():
        os.environ.setdefault(name, capacity)  # read when torch is imported
    from vlmbatch.serve.config import ServeConfig
    from vlmbatch.serve.server import serve as answer_requests

    serve_config = ServeConfig(
        job=job,
        host=host,
        port=port,
        api_key=api_key,
        served_model_name=served_model_name,
        limit_images_per_prompt=limit_images_per_prompt,
        max_request_bytes=parse_size(max_request_bytes) or 0,
        max_concurrent_requests=max_concurrent_requests,
        request_timeout_s=parse_duration(request_timeout) or 0.0,
        grace_s=parse_duration(grace) or 0.0,
    )
    with early_exits(lambda: "the server had not started"):
        exit_status = answer_requests(serve_config)
    raise typer.Exit(exit_status)


def _check_extra() -> None:
    """See that what the server is built on is installed, without importing it.

    Raises:
        UsageError: it is not; the message has the command.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the server needs {', '.join(missing)}: run pip install 'vlmbatch[serve]'"
        )
