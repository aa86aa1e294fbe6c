"""Every error of ours comes back whole from a pickle: rows with errors wait on the disk."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

import vlmbatch
from vlmbatch.errors import RowError, VlmbatchError
from vlmbatch.manifest.jsonl import NotAnObjectError


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith("vlmbatch."):
            yield each
        yield from subclasses(each)


def our_errors() -> list[type[Exception]]:
    for module in pkgutil.walk_packages(vlmbatch.__path__, "vlmbatch."):
        if not module.name.endswith("__main__"):
            with suppress(ModuleNotFoundError):  # flash-attn, where there is no GPU
                importlib.import_module(module.name)
    return sorted({*subclasses(Exception)}, key=lambda kind: kind.__qualname__)


def takes_anything(kind: type[Exception]) -> bool:
    """Whether it has no constructor of its own."""
    return not any("__init__" in vars(each) for each in kind.__mro__ if each.__module__[0] == "v")


def test_each_comes_back_whole() -> None:
    kinds = our_errors()
    assert {VlmbatchError, RowError, NotAnObjectError} <= {*kinds}
    for kind in kinds:
        of_a_kind = st.builds(kind, st.text()) if takes_anything(kind) else st.builds(kind)

        @settings(deadline=None, max_examples=20)
        @given(of_a_kind)
        def comes_back(error: Exception) -> None:
            error.add_note("in row 7")
            back = pickle.loads(pickle.dumps(error))
            assert type(back) is type(error)
            assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))

        comes_back()
