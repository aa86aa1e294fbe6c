"""``vlmbatch doctor``: what this machine has, and what mends what it lacks."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Check what this machine has: Python, torch, CUDA, memory, disk, cache, extras.

    Exits 1 when something that is required is missing, and 0 otherwise.
    """
    from vlmbatch.commands.machine import examine

    checks = examine()
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in checks], indent=2) + "\n")
    else:
        from vlmbatch.commands.machine import print_checks

        print_checks(checks)
    raise typer.Exit(1 if any(check.state == "missing" for check in checks) else 0)
