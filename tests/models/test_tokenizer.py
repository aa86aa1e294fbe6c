from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CORPUS, SPECIAL, byte_level, sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import Unigram, WordLevel
from transformers import AutoTokenizer

from vlmbatch.errors import CheckpointError
from vlmbatch.models import tokenizer as tokenizer_module
from vlmbatch.models.tokenizer import IncrementalDecoder, Tokenizer

TINY_LLAVA = Path(__file__).parents[2] / "samples" / "tiny-llava"
TEXTS = [
    "",
    " ",
    "What colour is the circle?",
    "  leading and trailing  ",
    "USER: <image>\nWhat? ASSISTANT:",
    "<image><image> <image>",
    "</s> in the <s>text",
    "tabs\tand\nnewlines\r\n\n",
    "naïve 数字 🙂 👨‍👩‍👧 \x00 \ufffd",
    "it 's a test , is n't it ?",
]


def test_a_file_that_makes_its_library_panic_is_refused(tmp_path: Path) -> None:
    """Its template of special tokens names one that it does not define."""
    found = json.loads((TINY_LLAVA / "tokenizer.json").read_text())
    found["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: the tokenizer cannot encode a text"):
        Tokenizer.load(tmp_path)


def test_a_file_without_the_token_that_it_has_for_what_is_unknown(tmp_path: Path) -> None:
    Backend(WordLevel({"a": 0}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(CheckpointError, match="cannot encode a text: WordLevel error: Missing"):
        tokenizer.encode("b")


def unigram() -> Backend:
    characters = sorted(set("".join(CORPUS)) - {" "})
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁circle", -4.0)]
    backend = Backend(Unigram([*pieces, *((c, -5.0) for c in characters)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    return backend


BACKENDS: dict[str, Callable[[], Backend]] = {
    "byte level": lambda: byte_level(SPECIAL),
    "byte level, image only in the configuration": lambda: byte_level(SPECIAL[:3]),
    "sentencepiece": lambda: sentencepiece(legacy=False),
    "sentencepiece, legacy": lambda: sentencepiece(legacy=True),
    "unigram": unigram,
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "image_token": "<image>"}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"tokenizer_class": "LlamaTokenizer", **NAMED},
    "bos and eos asked for": {**NAMED, "add_bos_token": True, "add_eos_token": True},
    "bos refused": {**NAMED, "add_bos_token": False, "tokenizer_class": "LlamaTokenizerFast"},
    "extra tokens": {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": False},
        "eos_token": "</s>",
        "additional_special_tokens": ["<image>", "circle"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "named extra tokens": {
        "extra_special_tokens": {"image_token": "<image>", "mark_token": "<mark>"},
        "tokenizer_class": "TokenizersBackend",
    },
    "decoder": {
        **NAMED,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True, "normalized": False},
            "900": {"content": "<extra>", "special": False, "normalized": False},
            "901": {"content": "<image>", "special": True, "normalized": False},
        },
    },
}


def save(folder: Path, backend: Backend, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))


def assert_equal(folder: Path, texts: list[str]) -> None:
    ours = Tokenizer.load(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    for name, text in theirs.special_tokens_map.items():
        assert ours.special_tokens[name] == text
    for text in texts:
        for add in (True, False):
            ids = ours.encode(text, add)
            assert ids == theirs.encode(text, add_special_tokens=add), text
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_transformers(backend: str, config: str, tmp_path: Path) -> None:
    save(tmp_path, BACKENDS[backend](), CONFIGS[config])
    assert_equal(tmp_path, [*TEXTS, "<extra> <mark> circle<mark>"])


def test_special_tokens_map_file(tmp_path: Path) -> None:
    save(tmp_path, byte_level(SPECIAL), {})
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert Tokenizer.load(tmp_path).bos_token == "<s>"
    assert_equal(tmp_path, TEXTS)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = byte_level(SPECIAL)
    backend.enable_truncation(4)
    backend.enable_padding(length=50, pad_token="</s>")
    save(tmp_path, backend, CONFIGS["plain"] | {"pad_token": "</s>"})
    assert_equal(tmp_path, TEXTS)


def test_cleaning_up_is_ignored_for_bpe_as_in_transformers(tmp_path: Path) -> None:
    save(tmp_path, byte_level(SPECIAL), NAMED | {"clean_up_tokenization_spaces": True})
    assert_equal(tmp_path, TEXTS)


def test_cleaning_up_is_refused_for_others(tmp_path: Path) -> None:
    save(tmp_path, unigram(), NAMED | {"clean_up_tokenization_spaces": True})
    with pytest.raises(CheckpointError, match="clean_up_tokenization_spaces is true"):
        Tokenizer.load(tmp_path)


def test_sample_model_equals_transformers() -> None:
    assert_equal(TINY_LLAVA, TEXTS)


def test_without_tokenizer_json_transformers_converts(tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0} | {
        character: number for number, character in enumerate(sorted(byte_alphabet()), 1)
    }
    vocabulary["re"] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert_equal(tmp_path, ["red", "more red"])
    assert vocabulary["re"] in Tokenizer.load(tmp_path).encode("red")


def byte_alphabet() -> list[str]:
    alphabet: list[str] = pre_tokenizers.ByteLevel.alphabet()
    return alphabet


@pytest.mark.parametrize("content", [None, "{", '{"model": {"type": "Nothing"}}'])
def test_missing_or_malformed(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_file_that_makes_tokenizers_panic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rust's panics are BaseExceptions, as are the signals that no file is to blame for."""

    class Panic(BaseException):
        pass

    class Broken:
        def __init__(self, error: BaseException) -> None:
            self._error = error

        def from_buffer(self, data: bytes) -> None:
            raise self._error

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(tokenizer_module, "Backend", Broken(Panic("index out of bounds")))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a usable .* index out of"):
        Tokenizer.load(tmp_path)
    monkeypatch.setattr(tokenizer_module, "Backend", Broken(SystemExit()))
    with pytest.raises(SystemExit):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("tokens", [[1], {"x": {}}, {"1": {"kontent": "<s>"}}])
def test_malformed_added_tokens(tokens: object, tmp_path: Path) -> None:
    save(tmp_path, byte_level(SPECIAL), {"added_tokens_decoder": tokens})
    with pytest.raises(CheckpointError, match="added_tokens_decoder is malformed"):
        Tokenizer.load(tmp_path)


def test_lone_surrogate(tmp_path: Path) -> None:
    save(tmp_path, byte_level(SPECIAL), NAMED)
    with pytest.raises(UnicodeEncodeError):
        Tokenizer.load(tmp_path).encode("a\ud800")


def test_fingerprint(tmp_path: Path) -> None:
    save(tmp_path / "a", byte_level(SPECIAL), NAMED)
    save(tmp_path / "b", byte_level(SPECIAL), NAMED)
    save(tmp_path / "c", byte_level(SPECIAL), NAMED | {"mask_token": "<mask>"})
    swapped = {"bos_token": NAMED["eos_token"], "eos_token": NAMED["bos_token"]}
    save(tmp_path / "d", byte_level(SPECIAL), NAMED | swapped)
    a, b, c, d = (Tokenizer.load(tmp_path / name).fingerprint for name in "abcd")
    assert a == b and len({a, c, d}) == 3


@pytest.fixture(scope="module", params=list(BACKENDS))
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder, BACKENDS[request.param](), CONFIGS["plain"])
    return Tokenizer.load(folder)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.flush()]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_deltas_of_any_ids_add_up(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # Past the vocabulary's end too: a model's may be padded.
    ids = data.draw(st.lists(st.integers(0, 760), max_size=40))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60))
def test_deltas_of_any_text_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_deltas_come_as_soon_as_they_can(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("red circle 🙂 left", add_special_tokens=False)
    deltas = stream(tokenizer, ids)
    assert deltas[-1] == ""
    assert not any("\ufffd" in delta for delta in deltas)
    num_plain = len(tokenizer.encode("red circle", add_special_tokens=False))
    assert "".join(deltas[:num_plain]).rstrip() == "red circle"


def test_unfinished_character_comes_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a 🙂", add_special_tokens=False)
    for end in range(len(ids)):
        assert "".join(stream(tokenizer, ids[:end])) == tokenizer.decode(ids[:end])


@pytest.mark.parametrize("backend", [byte_level(SPECIAL), sentencepiece(legacy=False)])
def test_pieces_add_up_to_the_text(backend: Backend) -> None:
    tokenizer = Tokenizer(backend, {})
    ids = tokenizer.encode("What colour is the circle?", add_special_tokens=False)
    assert "".join(map(tokenizer.piece, ids)).strip() == "What colour is the circle?"
    assert any(tokenizer.piece(token_id).startswith(" ") for token_id in ids)
    assert tokenizer.piece(10**6) == ""


def test_the_piece_of_a_special_token_is_its_own_text() -> None:
    tokenizer = Tokenizer.load(TINY_LLAVA)
    (token_id,) = tokenizer.encode("</s>", add_special_tokens=False)
    assert tokenizer.piece(token_id) == "</s>"
