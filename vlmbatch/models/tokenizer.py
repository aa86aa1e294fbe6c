"""Text to token ids and back, as transformers does it, on the ``tokenizers`` library alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from vlmbatch.errors import CheckpointError
from vlmbatch.models.json_fields import check_file, read_json

_MAX_BYTES = 512 * 2**20  # of tokenizer.json; large vocabularies take some 30 megabytes
_NAMED_TOKENS = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_NONCHARACTER = "\U0010fffe"  # of which Unicode says that texts do not have it
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 sequence decodes to


class Tokenizer:
    """A checkpoint's tokenizer. Thread-safe; ``encode`` releases the interpreter lock.

    ``special_tokens``: the texts of the named tokens ("bos_token", "eos_token", ...).
    """

    def __init__(self, backend: Any, special_tokens: Mapping[str, str]) -> None:
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(
            token_id for token_id, token in added.items() if token.special
        )
        self._pieces: dict[int, str] = {}  # at most one for each entry of the vocabulary
        # Looked up: to copy a large vocabulary, and look through it, takes a fifth of a second.
        self._byte_ids = frozenset(map(backend.token_to_id, _BYTE_TOKENS)) - {None}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json``, or convert what else the folder holds with transformers.

        Raises:
            CheckpointError: no usable tokenizer in the folder.
        """
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        if not config.get("added_tokens_decoder"):
            map_path = folder / "special_tokens_map.json"
            config |= read_json(map_path) if map_path.exists() else {}
        special_tokens = _special_tokens(config)
        path = folder / "tokenizer.json"
        if path.exists():
            backend = _read_backend(path)
        else:
            backend, defaults = _convert_with_transformers(folder)
            special_tokens = defaults | special_tokens
        if config.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE":
            raise CheckpointError(
                f"{config_path}: clean_up_tokenization_spaces is true, which is unsupported for "
                f"a {type(backend.model).__name__} tokenizer"
            )
        _register_added_tokens(backend, config, special_tokens, config_path)
        # transformers neither cuts nor pads a single prompt, whatever the file says.
        backend.no_truncation()
        backend.no_padding()
        tokenizer = cls(backend, special_tokens)
        try:
            tokenizer.encode("")  # special tokens alone, which the file may not know
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """Changes with anything that changes token ids, or what a chat template is told."""
        digest = hashlib.blake2b(self._backend.to_str().encode(), digest_size=16)
        digest.update(repr(sorted(self.special_tokens.items())).encode())
        return digest.hexdigest()

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def num_tokens(self) -> int:
        """Entries of the vocabulary, added ones among them."""
        size: int = self._backend.get_vocab_size()
        return size

    @property
    def num_ids(self) -> int:
        """One more than the largest id; more than ``num_tokens`` where ids are left out."""
        largest: int = max(self._backend.get_vocab().values())
        return largest + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Special tokens written out in ``text`` become their ids.

        Raises:
            UnicodeEncodeError: ``text`` holds a lone surrogate.
            CheckpointError: the tokenizer's file contradicts itself.
        """
        text.encode()
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            if not is_of_backend(error):
                raise
            raise CheckpointError(f"the tokenizer cannot encode a text: {error}") from error
        return ids

    def serialized(self) -> str:
        """As the tokenizers library writes it, with what other files of the folder have added.

        Special tokens have names that are in no text, so that no text has them, whatever it says.
        """
        state = json.loads(self._backend.to_str())
        special = [token for token in state["added_tokens"] if token["special"]]
        names = {token["content"]: f"{_NONCHARACTER}{token['id']}" for token in special}
        for token in special:
            token["content"] = names[token["content"]]
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(text, text): each for text, each in model["vocab"].items()}
        else:  # Unigram's, which has scores
            model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
        if (unknown := model.get("unk_token")) in names:
            model["unk_token"] = names[unknown]
        return json.dumps(state)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens and ids outside the vocabulary."""
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str | None:
        """The text of one entry of the vocabulary."""
        text: str | None = self._backend.id_to_token(token_id)
        return text

    def piece(self, token_id: int) -> str:
        """What the token adds to a text that it does not begin; of a special one its own text.

        A part of a character is a replacement character.
        """
        if token_id not in self._pieces:
            text = self.token_text(token_id) or ""
            if self.has_text(token_id):  # behind itself, as decoders cut what a text begins with
                text = self.decode([token_id, token_id])[len(self.decode([token_id])) :]
            self._pieces[token_id] = text
        return self._pieces[token_id]

    def has_text(self, token_id: int) -> bool:
        """Whether ``decode`` heeds the token: it is in the vocabulary and not special."""
        return token_id not in self._special_ids and self.token_text(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether the token stands for one byte of a character outside the vocabulary."""
        return token_id in self._byte_ids


class IncrementalDecoder:
    """Decodes one sequence token by token.

    The texts that ``push`` returns and the last one of ``flush`` add up to ``decode`` of all ids.
    Text is held back while a later token can still change it: an unfinished UTF-8 sequence.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Only a window of ids is decoded: the last ones given out, because decoders treat the
        # first token of a text differently (a leading space goes), and the ones held back.
        self._ids: list[int] = []
        self._num_given = 0
        self._given_text = ""  # what the window's given ids decode to

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` makes final, often its own; maybe none."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._ids.append(token_id)
        # The ByteFallback decoder turns a whole run of byte tokens into replacement characters
        # when the run as a whole is not UTF-8, so no byte is final before its run ends.
        if self._tokenizer.is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._given_text):
            return ""
        delta = text[len(self._given_text) :]
        self._ids = self._ids[self._num_given :]
        self._num_given = len(self._ids)
        self._given_text = self._tokenizer.decode(self._ids)
        return delta

    def flush(self) -> str:
        """The text still held back, if the sequence ends here. It stays held back."""
        return self._tokenizer.decode(self._ids)[len(self._given_text) :]


def is_of_backend(error: BaseException) -> bool:
    """Whether the tokenizers library raised it: an ``Exception``, nothing narrower, or a panic of
    its Rust code, whose class is no ``Exception`` and has no module to import."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _read_backend(path: Path) -> Any:
    try:
        check_file(path, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return Backend.from_buffer(path.read_bytes())  # which, unlike from_file, takes any name
    except (KeyboardInterrupt, SystemExit):
        raise
    # tokenizers raises nothing narrower than Exception, and some damaged files make it panic.
    except BaseException as error:
        raise CheckpointError(f"{path}: not a usable tokenizer: {error}") from error


def _convert_with_transformers(folder: Path) -> tuple[Any, dict[str, str]]:
    """A backend and the special tokens that its class in transformers has by default."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return tokenizer.backend_tokenizer, dict(tokenizer.special_tokens_map)
    except (OSError, ValueError, ImportError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: no tokenizer.json, and no other tokenizer that can be converted: {error}"
        ) from error


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the named special tokens, the standard ones first."""
    extra = config.get("extra_special_tokens")
    named = {**config, **extra} if isinstance(extra, dict) else config
    texts = {name: _text_of(named[name]) for name in named if name.endswith("_token")}
    order = [name for name in _NAMED_TOKENS if name in texts]
    order += [name for name in texts if name not in _NAMED_TOKENS]
    return {name: text for name in order if (text := texts[name]) is not None}


def _text_of(token: object) -> str | None:
    """A token is written as its text or as an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _added_token(token: Mapping[str, Any]) -> Any:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    text = _text_of(token)
    if text is None:
        raise ValueError(f"{token!r} has no content")
    return AddedToken(text, **{flag: token[flag] for flag in flags if flag in token})


def _register_added_tokens(
    backend: Any, config: Mapping[str, Any], special_tokens: Mapping[str, str], path: Path
) -> None:
    """Add the tokens that only ``tokenizer_config.json`` knows; known ones stay as they are."""
    try:
        added = {
            int(token_id): _added_token(token)
            for token_id, token in config.get("added_tokens_decoder", {}).items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: added_tokens_decoder is malformed: {error}") from error
    for _, token in sorted(added.items()):
        token.special = token.special or token.content in special_tokens.values()
        backend.add_tokens([token])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    texts = [*special_tokens.values(), *map(_text_of, extra if isinstance(extra, list) else ())]
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in texts if text is not None]
    )
