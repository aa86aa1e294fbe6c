"""Frozen settings of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from vlmbatch.config import SessionConfig
from vlmbatch.config.option import Opt, check_bounds
from vlmbatch.errors import ConfigError, FieldError

_server = partial(Opt, panel="Server")
_limits = partial(Opt, panel="Limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What is served, and within which limits.

    ``api_key`` None lets everybody in; blanks around it, as a file's last newline, are cut off.
    Times are in seconds, sizes in bytes.

    Raises:
        ConfigError: a value out of range.
    """

    session: SessionConfig
    host: Annotated[str, _server("ADDRESS", "Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _server("N", "0 is one that is free.", minimum=0, maximum=65535)] = 8000
    api_key: Annotated[
        str | None,
        _server("KEY", "Answer only who brings it; better set as VLMBATCH_API_KEY."),
    ] = field(default=None, repr=False)
    served_model_name: Annotated[
        str | None, _server("NAME", "Name of the model in requests; absent: --model.")
    ] = None
    limit_images_per_prompt: Annotated[  # LLaVA-1.5 was trained with one
        int | None,
        _limits(
            "N",
            "Images of one request; absent: 1 for models whose images all take the same number of "
            "tokens, else as many as the context holds.",
            minimum=0,
        ),
    ] = None
    max_request_bytes: Annotated[
        int,
        _limits("SIZE", "Size of a request's body, images included.", unit="size", minimum=1024),
    ] = 32 * 2**20
    max_concurrent_requests: Annotated[
        int, _limits("N", "Requests worked on at once; others get status 429.", minimum=1)
    ] = 256
    request_timeout_s: Annotated[
        float, _limits("TIME", "Time for one request.", flag="--request-timeout", unit="time")
    ] = 600.0
    grace_s: Annotated[
        float,
        _limits(
            "TIME",
            "Time for requests under way when the server is stopped.",
            flag="--grace",
            unit="time",
        ),
    ] = 20.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.api_key is not None:
            object.__setattr__(self, "api_key", self.api_key.strip())
            _check_key(self.api_key)
        if self.request_timeout_s <= 0:
            raise FieldError("request_timeout", f"must be above 0, got {self.request_timeout_s}")

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.served_model_name or self.session.model


def _check_key(key: str) -> None:
    if not key:
        raise ConfigError("the API key is empty: leave it out to let everybody in")
    for place, character in enumerate(key, 1):
        if not " " <= character <= "~":
            raise ConfigError(
                f"character {place} of the API key cannot be sent in a header, as clients send it: "
                "use ASCII letters, digits and punctuation"
            )
