"""Configurations and chat templates that are called by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Run
from in_process import call
from PIL import Image
from qwen_vl_checkpoints import make_checkpoint

from vlmbatch.commands.config_file import load_settings
from vlmbatch.config.shipped import find_chat_template, find_config
from vlmbatch.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG_NAMES = sorted(path.stem for path in CONFIGS.glob("*.toml"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_a_name_stands_for_the_file_in_configs(name: str) -> None:
    assert find_config(name).samefile(CONFIGS / f"{name}.toml")
    assert load_settings(find_config(name))["model"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Qwen's whose context has room for what its configurations ask."""
    folder = tmp_path_factory.mktemp("qwen")
    make_checkpoint("qwen2_5_vl", folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["text_config"]["max_position_embeddings"] = 65_536
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    "name", [name for name in CONFIG_NAMES if name.startswith("qwen") or "ocr" in name]
)
def test_pages_are_asked_about(name: str, qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page alone, and with a question: one image each, in the template of the model."""
    Image.new("RGB", (80, 120), "white").save("page.png")
    rows = [{"prompt": prompt, "image": "page.png"} for prompt in ("", "Who wrote it?")]
    Path("m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call(["validate", "m.jsonl", "--config", name, "-m", qwen]) == 0, capsys.readouterr().err


def test_a_template_has_a_name_too() -> None:
    assert find_chat_template("llava-1.5").samefile(CONFIGS / "llava-1.5.jinja")


@pytest.mark.parametrize("find", [find_config, find_chat_template])
def test_a_file_wins_over_a_name_and_a_name_over_a_folder(find: Callable[..., Path]) -> None:
    name = {find_config: "llava-1.5-7b", find_chat_template: "llava-1.5"}[find]
    Path(name).mkdir()
    assert find(name).parent.samefile(CONFIGS)
    Path(name).rmdir()
    Path(name).write_text("")
    assert find(name) == Path(name)


@pytest.mark.parametrize(
    "path", ["folder/other", "folder/llava-1.5-7b", "other.toml", "/no/such.toml"]
)
def test_a_path_stays_a_path(path: str) -> None:
    assert find_config(path) == Path(path)


def test_a_folder_that_has_no_known_name_stays_a_path() -> None:
    Path("checkpoint").mkdir()
    assert find_chat_template("checkpoint") == Path("checkpoint")


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(ConfigError) as caught:
        find_config("llava")
    assert str(caught.value) == (
        "there is no configuration 'llava': give a file, or one of the names "
        + ", ".join(CONFIG_NAMES)
    )
    with pytest.raises(ConfigError, match=r"no chat template 'llava': .* names llava-1\.5$"):
        find_chat_template("llava")


def test_a_path_into_the_repository_tells_the_name() -> None:
    with pytest.raises(ConfigError, match=r"; llava-1\.5-7b, without a folder or an ending, is"):
        find_config("configs/llava-1.5-7b.toml")
    with pytest.raises(ConfigError, match=r"; llava-1\.5, without a folder or an ending, is"):
        find_chat_template("configs/llava-1.5.jinja")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_what_can_be_no_file_is_no_name_either(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no configuration"):
        find_config(name)


def test_the_command_line_takes_names(job: Run) -> None:
    arguments = ("run", "m.jsonl", "-o", "-", "--config", "llava-1.5-7b")
    done = job("show_config", *arguments, "--chat-template", "llava-1.5")
    assert done.returncode == 0, done.stderr
    assert '"model": "llava-hf/llava-1.5-7b-hf"' in done.stdout
    assert "configs/llava-1.5.jinja" in done.stdout


def test_a_configuration_may_name_a_template(job: Run, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('model = "m"\nchat_template = "llava-1.5"\n')
    done = job("show_config", "run", "m.jsonl", "-o", "-", "--config", "job.toml")
    assert "configs/llava-1.5.jinja" in done.stdout, done.stderr


@pytest.mark.parametrize("option", ["--config", "--chat-template"])
def test_an_unknown_name_ends_with_2(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "m.jsonl", "-m", "m", "-o", "out.parquet", option, "nope"]) == 2
    assert "'nope': give a file, or one of the names" in capsys.readouterr().err
