"""What is known of the stores whose schemes are named here, and of the libraries that read them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONNECT_SECONDS = 10
READ_SECONDS = 20  # without a byte, before a request is tried again
ATTEMPTS = 3
MAX_CONNECTIONS = 64  # no fewer than the threads that fetch images


@dataclass(frozen=True, slots=True)
class Store:
    """What is known of the file systems of a scheme.

    ``raised`` are the errors that are no ``OSError``, ``refused`` those among them that say that
    there are no credentials, which ``access`` says how to give. ``log``: where a library also
    writes what it raises, with tracebacks.
    """

    install: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    raised: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    forbidden: str | None = None
    access: str = ""
    log: str | None = None

    def kinds(self) -> tuple[type[Exception], ...]:
        if not self.raised:
            return (Exception,)  # of a package that is not known here anything can come
        return (OSError, ValueError, NotImplementedError, *map(_imported, self.raised))

    def refuses(self, error: BaseException) -> bool:
        if self.forbidden is not None and str(error).startswith(self.forbidden):
            return True
        return isinstance(error, tuple(map(_imported, self.refused)))


_S3 = Store(
    install="pip install 'vlmbatch[s3]'",
    options={
        "config_kwargs": {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": MAX_CONNECTIONS,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        }
    },
    raised=(
        "botocore.exceptions.BotoCoreError",
        "botocore.exceptions.ClientError",
        "aiohttp.ClientError",
        "urllib3.exceptions.HTTPError",
    ),
    refused=(
        "botocore.exceptions.NoCredentialsError",
        "botocore.exceptions.PartialCredentialsError",
        "botocore.exceptions.CredentialRetrievalError",
        "botocore.exceptions.ProfileNotFound",
    ),
    access="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role give access; "
    "FSSPEC_S3_ANON=true reads public buckets",
)
_GS = Store(
    install="pip install 'vlmbatch[gs]'",
    options={"requests_timeout": READ_SECONDS},
    raised=(
        "gcsfs.retry.HttpError",
        "gcsfs.retry.ChecksumError",
        "gcsfs.retry.NonRetryableError",
        "google.auth.exceptions.GoogleAuthError",
        "google.api_core.exceptions.GoogleAPIError",
        "aiohttp.ClientError",
    ),
    refused=("google.auth.exceptions.GoogleAuthError",),
    forbidden="Forbidden: ",  # of an OSError that has no number
    access="GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login give access; "
    "FSSPEC_GS_TOKEN=anon reads public buckets",
    log="gcsfs",
)
_AZ = Store(
    install="pip install 'vlmbatch[az]'",
    options={"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS},
    raised=("azure.core.exceptions.AzureError", "aiohttp.ClientError"),
    refused=("azure.core.exceptions.ClientAuthenticationError",),
    access="AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, "
    "or AZURE_STORAGE_CONNECTION_STRING, give access; AZURE_STORAGE_ANON=true reads public "
    "containers",
)
_HF = Store(
    install="pip install 'huggingface-hub>=1.0'",
    raised=(
        "huggingface_hub.errors.HTTPError",
        "huggingface_hub.errors.EntryNotFoundError",
        "huggingface_hub.errors.RevisionNotFoundError",
    ),
    access="HF_TOKEN, or hf auth login, gives access",
)
STORES = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GS,
    "gcs": _GS,
    "az": _AZ,
    "abfs": _AZ,
    "abfss": _AZ,
    "hf": _HF,
}


def _imported(name: str) -> type[Exception]:
    module, _, kind = name.rpartition(".")
    found: type[Exception] = getattr(importlib.import_module(module), kind)
    return found
