"""Fields in refusals, called as the user has set them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from vlmbatch.commands.environment import PREFIX
from vlmbatch.config.option import OptField
from vlmbatch.errors import FieldError


@contextmanager
def fields_as_given(context: typer.Context, options: Sequence[OptField]) -> Iterator[None]:
    """Within, refusals call fields as what has set them does: by option, variable of the
    environment, or key of a configuration file; by option too where nothing has."""
    try:
        yield
    except FieldError as error:
        error.call({item.name: _given_name(context, item) for item in options})
        raise


def _given_name(context: typer.Context, item: OptField) -> str:
    source = context.get_parameter_source(item.name)
    if source is not None and source.name == "ENVIRONMENT":
        return PREFIX + item.name.upper()
    if source is not None and source.name == "DEFAULT_MAP":
        return item.name
    return item.opt.metavar if item.opt.positional else item.flag.partition("/")[0]
