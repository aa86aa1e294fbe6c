"""What transformers prints and raises, in our terms."""

from __future__ import annotations

_LENGTH = 400

_FAILURES = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    ImportError,
    MemoryError,
)


def config_failures() -> tuple[type[Exception], ...]:
    """What reading a checkpoint may raise: transformers expects well-formed files."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (*_FAILURES, StrictDataclassError, SafetensorError)


def quiet_library() -> None:
    """Nothing of transformers' warnings and progress bars: what matters is an error of ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def shown(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LENGTH else text[:_LENGTH] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
