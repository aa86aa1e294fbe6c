"""``--ray [ADDRESS]``: an option whose value may be left out, which Typer does not know."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FLAG = "--ray"
_ADDRESS = re.compile(r"auto|local|\w+://.*|[^/]*:\d+")


def with_address(arguments: Sequence[str]) -> list[str]:
    """The arguments, with "auto" for ``--ray`` where what follows it is no address of a cluster.

    >>> with_address(["run", "--ray", "manifest.jsonl"])
    ['run', '--ray', 'auto', 'manifest.jsonl']
    """
    complete: list[str] = []
    for argument in arguments:
        if complete and complete[-1] == _FLAG and not _ADDRESS.fullmatch(argument):
            complete.append("auto")
        complete.append(argument)
    return [*complete, "auto"] if complete and complete[-1] == _FLAG else complete
