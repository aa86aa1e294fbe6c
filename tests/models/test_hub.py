from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from vlmbatch.errors import CheckpointError
from vlmbatch.models.hub import resolve_model
from vlmbatch.stats import RunStats


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A Hub that hands out a folder or raises ``hub["error"]``, and keeps what it was asked."""
    state: dict[str, Any] = {"error": None, "folder": tmp_path / "snapshot"}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        state.update(options, repo_id=repo_id)
        if state["error"] is not None:
            raise state["error"]
        return str(state["folder"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def http_error(kind: Any) -> errors.HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error")
    return error


def test_folder_is_taken_as_it_is(tmp_path: Path, hub: dict[str, Any]) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    assert "repo_id" not in hub


def test_folder_comes_before_an_id_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: dict[str, Any]
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == Path("org/model")
    assert "repo_id" not in hub


def test_download_takes_no_pickles(hub: dict[str, Any]) -> None:
    assert resolve_model("org/model", "v2") == hub["folder"]
    assert (hub["repo_id"], hub["revision"]) == ("org/model", "v2")
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "a.jinja"]
    unwanted = ["pytorch_model.bin", "model.pt", "x.pkl", "modeling.py", "onnx/config.json"]
    kept = huggingface_hub.utils.filter_repo_objects(
        [*wanted, *unwanted],
        allow_patterns=hub["allow_patterns"],
        ignore_patterns=hub["ignore_patterns"],
    )
    assert list(kept) == wanted


def test_a_tokenizer_or_image_processor_comes_without_weights(hub: dict[str, Any]) -> None:
    assert resolve_model("org/model", weights=False) == hub["folder"]
    wanted = ["preprocessor_config.json", "tokenizer.json", "tokenizer.model"]
    kept = huggingface_hub.utils.filter_repo_objects(
        [*wanted, "model.safetensors"], allow_patterns=hub["allow_patterns"]
    )
    assert list(kept) == wanted


@pytest.mark.parametrize("name", ["./missing", "/missing", "~/missing", "a/b/c", "missing"])
def test_missing_folder(name: str, hub: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model(name)
    assert "repo_id" not in hub


def test_the_name_of_a_configuration() -> None:
    with pytest.raises(CheckpointError, match=r"it is a configuration: --config qwen3-vl-8b$"):
        resolve_model("qwen3-vl-8b")


@pytest.mark.parametrize("missing", ["tiny-lava", "a/tiny-lava"])
def test_missing_folder_with_a_neighbour(
    missing: str, tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["error"] = errors.OfflineModeIsEnabled("offline")
    folder = tmp_path / Path(missing).with_name("tiny-llava")
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        resolve_model(missing)
    assert "did you mean" not in str(caught.value)  # a folder without a checkpoint in it
    (folder / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"\(did you mean (a/)?tiny-llava\?\)"):
        resolve_model(missing)


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(CheckpointError, match="give the checkpoint's folder"):
        resolve_model(str(path))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errors.HFValidationError("bad name"), "not a valid Hugging Face id"),
        (http_error(errors.RepositoryNotFoundError), "check the spelling"),
        (http_error(errors.GatedRepoError), "accept its terms"),
        (http_error(errors.RevisionNotFoundError), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("not cached"), "HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_failures_say_what_to_do(error: Exception, advice: str, hub: dict[str, Any]) -> None:
    hub["error"] = error
    with pytest.raises(CheckpointError, match=advice) as caught:
        resolve_model("org/model", "v9")
    assert "org/model" in str(caught.value)


def test_bytes_are_counted_for_our_display(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of files of 70 and 30 bytes, as huggingface_hub does it: totals grow as files are found."""
    stats = RunStats()
    seen: list[tuple[int, int]] = []

    def snapshot_download(repo_id: str, tqdm_class: Any, **options: Any) -> str:
        arrived = tqdm_class(
            desc="Downloading bytes", total=0, initial=0, unit="B", unit_scale=True
        )
        written = tqdm_class(desc="Reconstructing", total=0, initial=0, unit="B", name="a.b")
        for _ in tqdm_class([70, 30], desc="Fetching 2 files"):
            size = 70 if not seen else 30
            for bar in (arrived, written):
                bar.total += size
            written.refresh()
            written.update(size - 10)
            written.update(10)
            written.set_postfix_str("1 MB/s", refresh=False)
            assert stats.transfer is not None
            seen.append((stats.transfer.done, stats.transfer.total))
        written.set_description("Reconstruction complete")
        written.close()
        return str(hub["folder"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("org/model", stats=stats) == hub["folder"]
    assert seen == [(70, 70), (100, 100)] and stats.transfer is None
    assert capfd.readouterr() == ("", "")
