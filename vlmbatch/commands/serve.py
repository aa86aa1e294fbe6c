"""``vlmbatch serve``: answer requests of OpenAI's API."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Annotated

import typer

from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.reporting import ReportOptions
from vlmbatch.errors import ConfigError, UsageError
from vlmbatch.serve.config import ServeConfig

REQUIRED = ("starlette", "uvicorn", "prometheus_client")
# On a CPU, torch and oneDNN keep code for each shape that they meet, by default for 1,024 of them.
# Steps of a server are of all sizes: the sample model's then take 0.4 GB, and with 128 no longer.
SHAPE_CACHES = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
# Requests bring chats and images along, not files.
_NO_FILES = without(
    *("disable_image_processor", "image_root", "chat", "prompt_template", "system_prompt")
)


@with_options
def serve(
    server: Annotated[ServeConfig, _NO_FILES],
    report: Annotated[ReportOptions, without("no_progress", "summary_json", "exit_zero")],
) -> None:
    """Answer requests of OpenAI's API about images, over HTTP.

    /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics.
    SIGTERM, SIGINT or SIGHUP stops the server. Exits 0 when requests under way were
    answered within --grace, 143, 130 or 129 when some were given up, 2 when it cannot
    start as given.
    """
    input_type = server.session.image_arguments.image_input_type
    if input_type != "pixel_values":
        raise ConfigError(
            f"--image-input-type {input_type}: requests bring images, so that the server takes "
            "pixel_values only"
        )
    _check_extra()
    for name, capacity in SHAPE_CACHES.items():
        os.environ.setdefault(name, capacity)  # read when torch is imported
    from vlmbatch.serve.server import serve as answer_requests

    with early_exits(lambda: "the server had not started"):
        exit_status = answer_requests(server)
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
