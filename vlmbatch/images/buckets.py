"""Which buckets and folders of object stores images may be read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlmbatch.errors import ConfigError
from vlmbatch.remote.filesystem import is_known, scheme_of

_LOCAL = frozenset({"file", "local"})  # what a path names, which --image-root bounds
_HUB_KINDS = frozenset({"datasets", "spaces", "buckets"})


@dataclass(frozen=True, slots=True)
class AllowedBuckets:
    """URLs, such as ``s3://photos`` or ``s3://photos/2026``, below which all may be read.

    Credentials open more than one bucket, and who wrote the rows should not choose which. A URL
    with ``..`` in it is below none.
    """

    urls: frozenset[str] = frozenset()  # without a slash at the end

    @classmethod
    def of(cls, urls: Iterable[str]) -> AllowedBuckets:
        """Of what a user gives as ``--allow-bucket``.

        Raises:
            ConfigError: one that has no scheme, or one of http, https or file.
        """
        for url in urls:
            if (scheme := scheme_of(url)) is None or scheme in _LOCAL or bucket_of(url)[-1] == "/":
                raise ConfigError(
                    f"--allow-bucket {url}: give a bucket or a folder in one, such as s3://photos "
                    "or s3://photos/2026"
                )
        return cls(frozenset(url.rstrip("/") for url in urls))

    def and_also(self, url: str) -> AllowedBuckets:
        """With the whole bucket that ``url`` lies in."""
        return AllowedBuckets(self.urls | {bucket_of(url)})

    def __bool__(self) -> bool:
        return bool(self.urls)

    def allows(self, url: str) -> bool:
        if ".." in url.split("/"):
            return False
        return any(url.startswith(f"{folder}/") for folder in self.urls)


def is_bucket_url(url: str) -> bool:
    """Whether a URL is of a store, by its scheme, and not of http(s) or this machine."""
    scheme = scheme_of(url)
    return scheme is not None and scheme not in _LOCAL and is_known(scheme)


def bucket_of(url: str) -> str:
    """The bucket that a URL lies in, as a URL; of the Hugging Face Hub, the repository."""
    scheme, _, path = url.partition("://")
    names = path.split("/")
    count = 1
    if scheme == "hf":
        count = 3 if names[0] in _HUB_KINDS else 2
    return f"{scheme}://{'/'.join(names[:count])}"
