"""docs/cli.md says what the program says."""

from __future__ import annotations

import re
import runpy

import typer.main
from documentation import PAGES, ROOT, sections

from vlmbatch.cli import app

MAKE = runpy.run_path(str(ROOT / "docs/make_cli.py"))


def test_the_reference_is_not_stale() -> None:
    assert PAGES["docs/cli.md"] == MAKE["page"](), "run make docs"


def test_every_option_of_every_command_is_in_it() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        shown = set(re.findall(r"--[a-z-]+", sections("docs/cli.md")[f"vlmbatch {name}"]))
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {flag for flag in flags if flag.startswith("--")} - {"--help"} <= shown


def test_bounds_defaults_choices_and_other_ways_to_set_an_option() -> None:
    run, serve = (sections("docs/cli.md")[f"vlmbatch {name}"] for name in ("run", "serve"))
    for row, text in (
        ("| at least 1 | `100000000` | `VLMBATCH_MAX_IMAGE_PIXELS`, `max_image_pixels` |", run),
        ("| `auto`, `cuda`, `cpu` | `auto` | `VLMBATCH_DEVICE`, `device` |", run),
        ("| at least 0 |  | `VLMBATCH_LIMIT`, `limit` |", run),
        ("| 0 to 65535 | `8000` | `VLMBATCH_PORT`, `port` |", serve),
        ("| `--overwrite`, `--resume` |", run),
        ("| `--output FILE`, `-o` |", run),
    ):
        assert row in text
    assert "VLMBATCH" not in sections("docs/cli.md")["vlmbatch status"]
