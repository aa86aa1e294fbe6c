"""Training data: scenes as pixels, with several questions packed behind one picture.

A pack is ``head <image>... newline`` followed by its questions. Each question sees the picture and
itself alone, at the positions that it would have in a prompt of its own, so a pack of ten trains
like ten rows for little more than the price of one.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import vocabulary
from PIL import Image
from questions import QUESTION_KINDS, Question
from scenes import Scene, make_scene
from tokenizers import Tokenizer
from workers import share_out

AT_MOST = {"colour": 2, "count": 3, "relation": 3, "number": 1, "describe": 1}
MAX_QUESTIONS = sum(AT_MOST.values())
MAX_TEXT = 127  # tokens of text in a pack; in one of 40 the last questions do not fit
JPEG_SHARE = 0.5  # pictures that go through JPEG first
CONVERSATION_SHARE = 0.15  # packs whose questions follow one another as turns
CHUNK = 250  # scenes a worker makes at a time
IGNORE = -100  # the target of a token that is not predicted


@dataclass
class Packs:
    """N packs of T text tokens; sequence positions count from the first text token."""

    pixels: np.ndarray  # (N, side, side, 3) uint8
    tokens: np.ndarray  # (N, T) int16
    targets: np.ndarray  # (N, T) int16, the token that follows where it answers, else IGNORE
    positions: np.ndarray  # (N, T) int16
    questions: np.ndarray  # (N, T) int8, the question that a token belongs to, -1 for padding
    segments: np.ndarray  # (N, T) int8, tokens attend within their segment, -1 for padding
    kinds: np.ndarray  # (N, MAX_QUESTIONS) int8, index into QUESTION_KINDS, -1 for none

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Turn:
    """A question and its answer in tokens; the last of the answer ends it."""

    asked: list[int]
    answered: list[int]
    kind: int


def split_prompt(
    tokenizer: Tokenizer, question: str, system_prompt: str | None = None
) -> tuple[list[int], list[int]]:
    """The prompt's tokens before and after the image token."""
    ids = tokenizer.encode(vocabulary.prompt(question, system_prompt)).ids
    where = ids.index(vocabulary.token_id(tokenizer, vocabulary.IMAGE))
    return ids[:where], ids[where + 1 :]


def preprocess(image: Image.Image, side: int) -> np.ndarray:
    """What CLIP's preprocessing does to a square picture, up to normalisation."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def make_packs(seeds: Sequence[int], tokenizer: Tokenizer, side: int, workers: int) -> Packs:
    """The packs of these seeds, the same whatever the number of workers."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    set_up = _set_up_worker, (tokenizer.to_str(), side)
    first, *rest = share_out(_make_chunk, chunks, workers, *set_up)
    return Packs(*(np.concatenate(parts) for parts in zip(first, *rest, strict=True)))


_worker: tuple[Tokenizer, int]


def _set_up_worker(tokenizer: str, side: int) -> None:
    global _worker
    _worker = Tokenizer.from_str(tokenizer), side


def _make_chunk(seeds: Sequence[int]) -> tuple[np.ndarray, ...]:
    tokenizer, side = _worker
    packs = []
    for seed in seeds:
        rng = random.Random(f"{seed} packing")
        scene = make_scene(seed)
        packs.append((_pixels(scene, side, rng), *_pack_questions(scene, tokenizer, rng)))
    return tuple(np.stack(parts) for parts in zip(*packs, strict=True))


def _pixels(scene: Scene, side: int, rng: random.Random) -> np.ndarray:
    return preprocess(perhaps_jpeg(scene.image, rng), side)


def perhaps_jpeg(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as it is, or as JPEG leaves it."""
    if rng.random() >= JPEG_SHARE:
        return image
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.randint(70, 95))
    return Image.open(file)


def _pack_questions(
    scene: Scene, tokenizer: Tokenizer, rng: random.Random
) -> tuple[np.ndarray, ...]:
    conversation = rng.random() < CONVERSATION_SHARE
    turns = [
        Turn(
            *_encode_turn(tokenizer, question, conversation and index > 0),
            kind=QUESTION_KINDS.index(question.kind),
        )
        for index, question in enumerate(scene.choose_questions(AT_MOST))
    ]
    pad = vocabulary.token_id(tokenizer, vocabulary.PAD)
    return pack_turns(turns, conversation, pad, MAX_TEXT, MAX_QUESTIONS)


def pack_turns(
    turns: Sequence[Turn], conversation: bool, pad: int, max_text: int, max_questions: int
) -> tuple[np.ndarray, ...]:
    """The tokens, targets, positions, questions, segments and kinds of ``Packs``, for one pack.

    The turns of a conversation follow one another; others are questions on their own.
    """
    tokens: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    questions: list[int] = []
    segments: list[int] = []
    kinds = np.full(max_questions, -1, np.int8)
    for index, turn in enumerate(turns):
        length = len(turn.asked) + len(turn.answered)
        if len(tokens) + length > max_text:
            break
        start = len(tokens) if conversation else 0
        tokens += turn.asked + turn.answered
        targets += [IGNORE] * (len(turn.asked) - 1) + turn.answered + [IGNORE]
        positions += range(start, start + length)
        questions += [index] * length
        segments += [0 if conversation else index] * length
        kinds[index] = turn.kind

    def padded(values: list[int], fill: int, dtype: type) -> np.ndarray:
        return np.array(values + [fill] * (max_text - len(values)), dtype)

    return (
        padded(tokens, pad, np.int16),
        padded(targets, IGNORE, np.int16),
        padded(positions, 0, np.int16),
        padded(questions, -1, np.int8),
        padded(segments, -1, np.int8),
        kinds,
    )


def _encode_turn(
    tokenizer: Tokenizer, question: Question, is_later: bool
) -> tuple[list[int], list[int]]:
    if is_later:
        text = f"USER: {question.text} ASSISTANT:"
        asked = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        asked = split_prompt(tokenizer, question.text)[1][1:]  # the newline is the pack's own
    answered = tokenizer.encode(f" {question.answer}", add_special_tokens=False).ids
    return asked, [*answered, vocabulary.token_id(tokenizer, vocabulary.EOS)]
