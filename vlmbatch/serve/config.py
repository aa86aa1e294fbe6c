"""Frozen settings of the server."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmbatch.config import RunConfig
from vlmbatch.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What is served, and within which limits.

    ``job``: model, engine, prompts and images as those of a run; its manifest and output play no
    part. ``api_key`` None lets everybody in; blanks around it, as a file's last newline, are
    cut off. Times are in seconds.

    Raises:
        ConfigError: a value out of range.
    """

    job: RunConfig
    host: str = "127.0.0.1"
    port: int = 8000  # 0: one that is free
    served_model_name: str | None = None  # None: the model as it was given
    api_key: str | None = field(default=None, repr=False)
    limit_images_per_prompt: int = 1  # LLaVA-1.5 was trained with one
    max_request_bytes: int = 32 * 2**20
    max_concurrent_requests: int = 256
    request_timeout_s: float = 600.0
    grace_s: float = 20.0  # for requests under way when the server is stopped

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"the port must be from 0 to {2**16 - 1}, got {self.port}")
        if self.api_key is not None:
            object.__setattr__(self, "api_key", self.api_key.strip())
            _check_key(self.api_key)
        if self.request_timeout_s <= 0:
            raise ConfigError(f"the request timeout must be above 0, got {self.request_timeout_s}")

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.served_model_name or self.job.model


def _check_key(key: str) -> None:
    if not key:
        raise ConfigError("the API key is empty: leave it out to let everybody in")
    for place, character in enumerate(key, 1):
        if not " " <= character <= "~":
            raise ConfigError(
                f"character {place} of the API key cannot be sent in a header, as clients send it: "
                "use ASCII letters, digits and punctuation"
            )
