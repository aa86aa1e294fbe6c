"""The command line: commands by name, errors as one line each, exit statuses.

Imports are light on purpose: ``vlmbatch --help`` must not wait for torch. Each command imports
what it needs when it runs.
"""

from __future__ import annotations

import gc
import logging
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmbatch import __version__, log
from vlmbatch.commands.bench import bench
from vlmbatch.commands.compare import compare
from vlmbatch.commands.doctor import doctor
from vlmbatch.commands.exits import (
    Terminated,
    fill_closed_descriptors,
    install_signal_handlers,
    leave_failed_stderr,
    status_of,
    stdout_failures,
)
from vlmbatch.commands.features import features
from vlmbatch.commands.merge import merge
from vlmbatch.commands.plan import plan
from vlmbatch.commands.ray_address import with_address
from vlmbatch.commands.report import report
from vlmbatch.commands.run import run
from vlmbatch.commands.serve import serve
from vlmbatch.commands.status import status
from vlmbatch.commands.validate import validate
from vlmbatch.commands.verify import verify
from vlmbatch.errors import OutputError, VlmbatchError, is_shortage

EPILOG = (
    "An option may also be set by a variable of the environment (VLMBATCH_MAX_TOKENS for "
    "--max-tokens), or in a --config file (max_tokens = 64). Flags win over variables, and "
    "variables over the file."
)
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
COMMAND: dict[str, Any] = {
    "epilog": EPILOG,
    "context_settings": {"auto_envvar_prefix": "VLMBATCH", **HELP_NAMES},
}

app = typer.Typer(
    name="vlmbatch",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
)
app.command(**COMMAND)(run)
app.command(**COMMAND)(validate)
app.command(**COMMAND)(plan)
app.command(**COMMAND)(features)
app.command(**COMMAND)(serve)
app.command(**COMMAND)(bench)
app.command(**COMMAND)(merge)
app.command(**COMMAND)(report)
app.command(**COMMAND)(compare)
app.command(**COMMAND)(verify)
app.command(context_settings=HELP_NAMES)(status)
app.command(context_settings=HELP_NAMES)(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlmbatch {__version__}")
        raise typer.Exit


@app.callback()
def vlmbatch(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Batch inference for vision-language models.

    A manifest of prompts and images in, a Parquet file of answers out.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: docs/durability.md lists what each means."""
    fill_closed_descriptors()
    _collect_less()
    log.configure()
    install_signal_handlers()
    try:
        return _main(args)
    finally:
        leave_failed_stderr()


def _main(args: Sequence[str] | None) -> int:
    if sys.stdout is None:  # the next file opened would take its place as descriptor 1
        log.logger.error("standard output is closed: redirect it to a file or to /dev/null")
        return OutputError.exit_status
    try:
        with stdout_failures():
            exit_status = app(
                with_address(sys.argv[1:] if args is None else args),
                prog_name="vlmbatch",
                standalone_mode=False,
            )
    except (KeyboardInterrupt, Terminated) as error:  # before or after the command's own work
        return status_of(error)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        return _misused(error)
    except VlmbatchError as error:
        log.logger.error("%s", error, exc_info=logging.root.isEnabledFor(logging.DEBUG))
        return error.exit_status
    except typer.Abort as error:  # Typer's, of an EOFError
        return _internal(error.__cause__ or error)
    except BaseException as error:
        if isinstance(error, SystemExit) and _is_of_typer(error):  # it has shown completions
            raise
        if is_shortage(error):
            log.logger.error("%s: free some of it or raise the limit, then run again", error)
            return status_of(error)
        return _internal(error)
    return exit_status if isinstance(exit_status, int) else 0


def _internal(error: BaseException) -> int:
    """Tell of an error that no user has caused; the exit status."""
    verbose = log.logger.isEnabledFor(logging.DEBUG)
    if isinstance(error, EOFError) and str(error).startswith("marshal data"):
        # Python keeps what it could write of a module that it has compiled.
        log.logger.error(
            "a compiled module (.pyc) was cut short, as on a full disk: remove the folders called "
            "__pycache__ below %s, or install again",
            Path(__file__).parents[1],
            exc_info=verbose and error,
        )
        return status_of(error)
    log.logger.error(
        "internal error: %s: %s\nThis is a bug in vlmbatch. Please report it with the output "
        "of `vlmbatch doctor` and the traceback%s.",
        type(error).__name__,
        error,
        "" if verbose else " that -v prints",
        exc_info=verbose and error,
    )
    return status_of(error)


def _collect_less() -> None:
    """Spend less on garbage, in a process that is ours alone.

    Importing torch makes 250,000 objects, most of which stay: Python would look for garbage among
    them 370 times meanwhile, which takes 0.1 s.
    """
    gc.set_threshold(50_000, 20, 20)


def _is_of_typer(error: BaseException) -> bool:
    """Whether an exception was raised by Typer itself, and not by what it calls."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals["__name__"]).partition(".")[0] == "typer"


def _misused(error: typer.TyperException) -> int:
    """Report a command line that Typer could not parse, with the value and where it came from."""
    context = getattr(error, "ctx", None)
    parameter = getattr(error, "param", None)
    if context is not None and isinstance(error, typer.BadParameter) and parameter is not None:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "ENVIRONMENT":
            error.param_hint = f"VLMBATCH_{parameter.name.upper()} in the environment"
    message = error.format_message().replace("Value error, ", "")
    if not message:  # the help was printed in its place
        return error.exit_code
    problems = getattr(error.__cause__, "errors", None)  # pydantic's, whose messages lack the value
    if problems is not None and repr(given := problems()[0]["input"]) not in message:
        message += f", got {given!r}"
    if message.startswith("Got unexpected extra argument"):  # of all files that a shell has found
        message = textwrap.shorten(message, 200, placeholder=" ...)")
        parameters = [] if context is None else context.command.params
        if any(
            each.name == "manifest" and each.param_type_name == "argument" for each in parameters
        ):
            message += (
                ": MANIFEST is a single name; of several files it is their folder, or a pattern in "
                "quotes, which the shell leaves alone, as in 'photos/*.jpg'"
            )
    command = context.command_path if context is not None else "vlmbatch"
    log.logger.error("%s\nTry `%s --help`.", message, command)
    return error.exit_code
