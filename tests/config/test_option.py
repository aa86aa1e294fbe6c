"""Options declared in fields: found, built from flat values, checked, and the same everywhere."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch import LLM
from vlmbatch.cli import app
from vlmbatch.commands.config_file import KEYS
from vlmbatch.commands.reporting import ReportOptions
from vlmbatch.config import (
    ManifestConfig,
    OutputOptions,
    RunPolicy,
    SamplingParams,
    SessionConfig,
)
from vlmbatch.config.option import Opt, build, check_bounds, opt_fields
from vlmbatch.config.units import UNITS
from vlmbatch.errors import ConfigError
from vlmbatch.serve.config import ServeConfig

OF_RUN = (OutputOptions, ManifestConfig, RunPolicy, SessionConfig, SamplingParams, ReportOptions)


@dataclass(frozen=True)
class Inner:
    kind: Annotated[Literal["a", "b"], Opt("NAME", "One of two.")] = "a"
    names: Annotated[tuple[str, ...], Opt("NAME", "Many.", flag="--name")] = ()
    quick: Annotated[bool, Opt("", "Not slow.", flag="--slow", unsets=True, argument="quick")] = (
        True
    )
    hidden: int = 3

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Outer:
    model: Annotated[str, Opt("NAME", "A model.", absent="no model given")]
    inner: Inner = field(default_factory=Inner)
    count: Annotated[int | None, Opt("N", "A number.", minimum=2, maximum=9)] = None
    wait_s: Annotated[float, Opt("TIME", "A time.", flag="--wait", unit="time")] = 90.0
    where: Annotated[Path | None, Opt("FILE", "A path.")] = None

    def __post_init__(self) -> None:
        check_bounds(self)


def test_options_are_found_within_configurations() -> None:
    found = {item.name: (item.path, item.default) for item in opt_fields(Outer)}
    assert found == {
        "model": (("model",), MISSING),
        "kind": (("inner", "kind"), "a"),
        "name": (("inner", "names"), ()),
        "slow": (("inner", "quick"), True),
        "count": (("count",), None),
        "wait": (("wait_s",), 90.0),
        "where": (("where",), None),
    }


def test_values_reach_their_fields() -> None:
    values = {"model": "m", "kind": "b", "name": ["x", "y"], "slow": True, "wait": "1m30s"}
    built = build(Outer, {**values, "count": 3, "where": "a/b"})
    assert built == Outer("m", Inner("b", ("x", "y"), False), 3, 90.0, Path("a/b"))
    assert build(Outer, {"model": "m", "name": None, "slow": False}) == Outer("m")


def test_arguments_go_by_their_own_names() -> None:
    assert build(Outer, {"model": "m", "quick": False}, key="argument").inner == Inner(quick=False)
    assert build(Outer, {"model": Path("a/m")}, key="argument") == Outer("a/m")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": None}, "no model given"),
        ({"model": 3}, "model must be a string, got 3"),
        ({"kind": "c"}, "kind is one of a, b; got 'c'"),
        ({"kind": ["a"]}, "kind is one of a, b; got ['a']"),
        ({"name": [1]}, "name[0] must be a string, got 1 (int)"),
        ({"name": 1}, "name must be a list of strings, got 1"),
        ({"count": True}, "count must be an integer, got True"),
        ({"count": 2.0}, "count must be an integer, got 2.0"),
        ({"count": 1}, "count must be from 2 to 9, got 1"),
        ({"count": 10}, "count must be from 2 to 9, got 10"),
        ({"wait": None}, "wait must be a number, got None"),
        ({"wait": "soon"}, "must be a time"),
        ({"slow": "yes"}, "slow must be True or False, got 'yes'"),
        ({"where": 3}, "where must be a path, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, {"model": "m", **values})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1, got 0"),
        ({"max_image_pixels": 0}, "max_image_pixels must be at least 1, got 0"),
        ({"host_memory": "much"}, "host_memory must be a size such as 4GiB"),
        ({"image_input_shape": [3]}, 'image_input_shape must be "1,channels,height,width"'),
        ({"model": ""}, "model must not be empty"),
        ({"image_root": ""}, "image_root must be a path, got ''"),
    ],
)
def test_a_message_names_the_argument(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(SessionConfig, {"model": "m", **values}, key="argument")
    assert str(caught.value).startswith(message)


@given(
    st.sampled_from([SessionConfig, SamplingParams, ManifestConfig, RunPolicy, ServeConfig]),
    st.data(),
)
def test_no_value_gets_in_but_as_its_kind(config: type, data: st.DataObject) -> None:
    """Whatever is given, a configuration is refused by a message or holds what its types say."""
    item = data.draw(st.sampled_from(opt_fields(config)))
    value = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        | st.lists(st.integers() | st.text(max_size=3), max_size=4)
    )  # fmt: skip
    try:
        built: Any = build(config, {"model": "m", "manifest": "m", item.name: value})
    except ConfigError:
        return
    for name in item.path:
        built = getattr(built, name)
    if built is None:
        assert type(None) in get_args(item.kind)
    elif item.item_kind is not None:
        assert isinstance(built, tuple)
        assert all(isinstance(each, item.item_kind) for each in built)
    elif item.choices:
        assert built in item.choices
    elif item.opt.unit != "shape":
        kinds = (int, float) if item.plain_kind is float else item.plain_kind
        assert isinstance(built, kinds)
        assert isinstance(built, bool) == (item.plain_kind is bool)


@given(st.integers(0, 2**50))
def test_sizes_and_times_are_read_as_they_are_shown(number: int) -> None:
    for unit in ("size", "time"):
        text = UNITS[unit].show(number)
        value = UNITS[unit].parse(text)
        assert value == number


@pytest.mark.parametrize("command", ["run", "validate", "features", "serve", "bench"])
def test_every_option_of_a_command_has_a_key_or_is_its_own(command: str) -> None:
    """A file may set what several commands have, and whatever ``run`` and ``serve`` have."""
    own = {
        "validate": {"decode_images", "errors"},
        "features": {"errors"},
        "bench": {"random_weights", "rows", "json_answers", "startup", "workloads", "json"},
    }
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    names = {parameter.name for parameter in parameters} - {"manifest", "config", "help"}
    assert names - own.get(command, set()) <= set(KEYS)


def test_run_has_every_option_of_its_configurations() -> None:
    parameters = typer.main.get_command(app).commands["run"].params  # type: ignore[attr-defined]
    names = {parameter.name for parameter in parameters} - {"config", "help"}
    items = [item for config in OF_RUN for item in opt_fields(config)]
    assert names == {item.name for item in items if not item.opt.python_only}
    assert len(names) == len([item for item in items if not item.opt.python_only])


def test_the_python_api_takes_the_options_of_a_session() -> None:
    """But for those of rows as manifests have them, and with their defaults."""
    not_in_python = {"allow_bucket", "allow_domain", "chat", "prompt_template", "system_prompt"}
    wanted = {
        item.argument: inspect.Parameter.empty if item.default is MISSING else item.default
        for item in opt_fields(SessionConfig)
        if item.name not in not_in_python
    }
    given = inspect.signature(LLM.__init__).parameters
    assert {name: p.default for name, p in given.items() if name != "self"} == wanted
