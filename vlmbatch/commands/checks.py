"""Options checked and put together before any work begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmbatch.config import ImageArguments, ImageInputType
from vlmbatch.errors import ConfigError, UsageError


def checked_model(model: str | None) -> str:
    """The model, or a message on how to name one."""
    if model is None:
        raise ConfigError(
            "no model given: add --model with a checkpoint folder or a Hub id, "
            "or --config with a file that has one"
        )
    return model


DEFAULT_SHARD_ROWS = 100_000


def is_folder(output: str) -> bool:
    """Whether an output is written as a folder of shards, by its name alone."""
    return output != "-" and (output.endswith("/") or Path(output).suffix != ".parquet")


def checked_output(
    output: str | None, manifest: str, *, overwrite: bool, shard_rows: int | None = None
) -> str:
    """Where the answers go, refused now rather than after hours of work.

    Raises:
        UsageError: none given for a manifest file, of another kind than we write, or in the way.
    """
    if output is None and manifest == "-":
        output = "-"
    if output is None:
        name = Path(manifest).name.partition(".")[0] or "answers"
        raise UsageError(
            f"no output given: add -o {name}.answers.parquet for a Parquet file, "
            "or -o - for JSONL on standard output"
        )
    if output == "-":
        if shard_rows is not None:
            raise UsageError("--shard-rows needs a folder: standard output is one stream")
        return output
    with _looking_at(f"output {output}"):
        _check_place(output, manifest, overwrite=overwrite, sharded=shard_rows is not None)
    return output


def _check_place(output: str, manifest: str, *, overwrite: bool, sharded: bool) -> None:
    path = Path(output)
    folder = sharded or is_folder(output)
    if path.is_dir() and not folder:
        raise UsageError(
            f"output {output} is a folder: name a .parquet file in it, such as "
            f"-o {path / 'answers.parquet'}, or add --shard-rows for a folder of files"
        )
    if path.name in ("", ".."):
        raise UsageError(f"output {output}: give the folder's name, as in -o {path / 'answers/'}")
    if folder and path.is_file():
        raise UsageError(
            f"output {output} is a file, not a folder: choose a name that ends in .parquet, "
            "another folder, or - for JSONL on standard output"
        )
    is_clear = output.endswith("/") or path.is_dir()  # a folder's name may have a dot
    if folder and not is_clear and path.suffix not in ("", ".parquet"):
        raise UsageError(
            f"output {output} is of no kind that can be written: choose a name that ends in "
            ".parquet, a folder, or - for JSONL on standard output"
        )
    if not path.parent.is_dir():
        raise UsageError(f"output {output}: there is no folder {path.parent}; create it first")
    if _is_same_file(output, manifest):
        raise UsageError(f"output {output} is the manifest itself: choose another name")
    has_run = path.with_name(f"{path.name}.vlmbatch").is_dir()
    if path.is_file() and not overwrite and not has_run:
        raise UsageError(
            f"output {output} exists, and no run on it is known: add --overwrite to replace it, or "
            "choose another name"
        )


def check_resume_options(
    output: str, *, overwrite: bool, retry_failed: bool, incremental: bool
) -> None:
    """Refuse options that contradict each other, or have nothing to go on from.

    Raises:
        UsageError: names the options.
    """
    chosen = [
        name
        for name, given in (
            ("--overwrite", overwrite),
            ("--retry-failed", retry_failed),
            ("--incremental", incremental),
        )
        if given
    ]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} contradict each other: choose one")
    if output == "-" and chosen and not overwrite:
        raise UsageError(f"{chosen[0]} needs an output file: standard output keeps nothing")


def check_report_file(option: str, path: str | None, manifest: str) -> None:
    """Refuse now what could not be written at the end, or would replace the manifest.

    Raises:
        UsageError: the path of ``option`` is a folder, is in none, or is the manifest.
    """
    if path is None or path == "-":
        return
    with _looking_at(f"{option} {path}"):
        if Path(path).is_dir():
            raise UsageError(f"{option} {path} is a folder: name a file in it")
        if not Path(path).parent.is_dir():
            raise UsageError(
                f"{option} {path}: there is no folder {Path(path).parent}; create it first"
            )
    if _is_same_file(path, manifest):
        raise UsageError(f"{option} {path} is the manifest itself: choose another name")


def check_stdout_use(option: str, path: str | None, *, data_on_stdout: bool) -> None:
    """Refuse two kinds of data on one standard output."""
    if path == "-" and data_on_stdout:
        raise UsageError(f"{option} - would mix with the data on standard output: name a file")


def _is_same_file(path: str, manifest: str) -> bool:
    if manifest == "-":
        return False
    try:
        return Path(path).samefile(manifest)
    except (OSError, ValueError):  # one of them is not there; reading the manifest tells why not
        return False


@contextmanager
def _looking_at(what: str) -> Iterator[None]:
    """Turn a path that may not be looked at, or cannot be one, into a usage error."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} cannot be looked at: {error.strerror}") from error
    except ValueError as error:  # a NUL character
        raise UsageError(f"{what!r} is no path: {error}") from error


def image_arguments(
    input_type: ImageInputType,
    token_id: int | None,
    shape: str | None,
    feature_size: int | None,
    strict_tokens: bool,
) -> ImageArguments:
    """The image arguments of the command line as a configuration.

    Raises:
        ConfigError: features in place of pixels, or a shape that is none.
    """
    if input_type != "pixel_values":
        raise ConfigError(
            f"--image-input-type {input_type} is not supported yet: use pixel_values, "
            "with image files in the image column"
        )
    return ImageArguments(input_type, token_id, _parse_shape(shape), feature_size, strict_tokens)


def _parse_shape(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    try:
        batch, channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        batch = channels = height = width = 0
    if batch != 1 or min(channels, height, width) < 1:
        raise ConfigError(
            f'--image-input-shape is "1,channels,height,width", such as "1,3,336,336"; got "{text}"'
        )
    return batch, channels, height, width
