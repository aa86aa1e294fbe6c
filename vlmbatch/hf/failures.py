"""What becomes of a batch that transformers could not answer. No torch."""

from __future__ import annotations


class BatchFailedError(Exception):
    """A batch failed on the rows that are in it, or on how many these are.

    ``out_of_memory``: half of them may fit.
    """

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory
