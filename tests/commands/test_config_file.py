"""Configuration files, and which of flag, environment, file and default wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from vlmbatch.cli import app
from vlmbatch.commands.config_file import KEYS, load_settings
from vlmbatch.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def shown_config(job: Run, *arguments: str, **variables: str) -> dict[str, Any]:
    done = job("show_config", "run", "m.jsonl", "-o", "-", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    config: dict[str, Any] = json.loads(done.stdout)
    return config


def test_flag_beats_environment_beats_file_beats_default(job: Run, tmp_path: Path) -> None:
    write(tmp_path, 'model = "m"\nmax_tokens = 7\ntop_k = 7\nseed = 7\n')
    config = shown_config(
        job,
        *("--config", "job.toml", "--max-tokens", "9"),
        VLMBATCH_MAX_TOKENS="8",
        VLMBATCH_TOP_K="8",
    )
    sampling = config["sampling"]
    assert [sampling[key] for key in ("max_tokens", "top_k", "seed")] == [9, 8, 7]
    assert sampling["temperature"] == 0.0
    assert config["session"]["model"] == "m"


def test_the_file_may_be_named_by_the_environment(job: Run, tmp_path: Path) -> None:
    write(tmp_path, 'model = "m"\nmax_tokens = 7\n')
    assert shown_config(job, VLMBATCH_CONFIG="job.toml")["sampling"]["max_tokens"] == 7


def test_arrays_flags_and_shapes_of_a_file(job: Run, tmp_path: Path) -> None:
    write(
        tmp_path,
        'model = "m"\nstop = ["a b", "\\n"]\nstop_token_id = [3, 4]\nchat = true\n'
        "no_prefix_caching = true\nimage_input_shape = [1, 3, 80, 80]\ntemperature = 1\n",
    )
    config = shown_config(job, "--config", "job.toml")
    assert config["sampling"]["stop"] == ["a b", "\n"]
    assert config["sampling"]["stop_token_ids"] == [3, 4]
    assert config["sampling"]["temperature"] == 1.0
    assert config["session"]["prompt"]["chat"] is True
    assert config["session"]["engine"]["enable_prefix_caching"] is False
    assert config["session"]["image_arguments"]["image_input_shape"] == [1, 3, 80, 80]


def test_classes_of_a_list_are_whole(job: Run, tmp_path: Path) -> None:
    """Those of one text, on the command line alone, are divided."""
    write(tmp_path, 'model = "m"\nchoices = ["x, y", "z"]\n')
    assert shown_config(job, "--config", "job.toml")["sampling"]["choices"] == ["x, y", "z"]
    found = shown_config(job, "--config", "job.toml", "--choices", "x, y")
    assert found["sampling"]["choices"] == ["x", "y"]
    write(tmp_path, 'model = "m"\nchoices = ["x, y"]\n')
    done = job("show_config", "run", "m.jsonl", "-o", "-", "--config", "job.toml")
    assert "choices must be from 2 to 256 classes, got 1" in done.stderr


def test_a_repeated_flag_replaces_the_array_of_the_file(job: Run, tmp_path: Path) -> None:
    write(tmp_path, 'model = "m"\nstop = ["a"]\n')
    config = shown_config(job, "--config", "job.toml", "--stop", "x", "--stop", "y")
    assert config["sampling"]["stop"] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "m"\n\nmax_token = 3\n', "job.toml:3: unknown key 'max_token'; did you mean"),
        ("max-tokens = 3\n", "did you mean 'max_tokens'?"),
        (
            "[sampling]\nmax_num_seqs = 3\n",
            "job.toml:1: unknown key 'sampling'; keys stand at the top",
        ),
        ('max_tokens = "3"\n', "job.toml:1: 'max_tokens' must be an integer, got \"3\""),
        ("max_tokens = true\n", "'max_tokens' must be an integer, got true"),
        ("max_tokens = 3.0\n", "'max_tokens' must be an integer, got 3.0"),
        ('temperature = "hot"\n', "'temperature' must be a number"),
        ('dtype = "fp8"\n', '\'dtype\' must be one of "auto", "float32"'),
        ('stop = "x"\n', "'stop' must be an array of strings, got \"x\""),
        ("stop_token_id = [1, 2.5]\n", "'stop_token_id' must be an array of integers"),
        ("chat = 1\n", "'chat' must be true or false, got 1"),
        ('model = "m\n', "is not valid TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text))
    assert message in str(caught.value)
    assert "job.toml" in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("max_tokens = 3\r\n", encoding="utf-8-sig")
    assert load_settings(path) == {"max_tokens": 3}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.toml: No such file"):
        load_settings(tmp_path / "nope.toml")


def test_a_bad_file_ends_with_2(job: Run, tmp_path: Path) -> None:
    write(tmp_path, "max_token = 3\n")
    done = job("answered", "run", "m.jsonl", "--config", "job.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: job.toml:1: unknown key 'max_token'; did you mean 'max_tokens'?\n"


def test_keys_are_the_options_of_run() -> None:
    import typer.main

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parameters = [*commands["run"].params, *commands["serve"].params]
    options = {parameter.name for parameter in parameters} - {"manifest", "config", "help"}
    assert set(KEYS) == options


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_load(path: Path) -> None:
    values = load_settings(path)
    assert values["model"]
    of_one_size = {"image_token_id", "image_feature_size", "image_input_shape"}
    assert of_one_size & values.keys() in (of_one_size, set())
