"""Training data of the second sample model: pictures as patches, with questions packed behind them.

A pack is one or two pictures followed by its questions, each of which sees the pictures and itself
alone. Packs name their pictures by number, so that a picture serves in several. They come in
groups: about scenes, pairs of them, pages with one word and pages with several.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import qwen_vocabulary as words
from packing import CONVERSATION_SHARE, Turn, pack_turns, perhaps_jpeg
from pages import PAGE_QUESTION_KINDS, Page, make_page
from pairs import PAIR_QUESTION_KINDS, Pair
from PIL import Image
from questions import QUESTION_KINDS, Question
from qwen_checkpoint import FACTOR, MAX_PIXELS, MERGE, MIN_PIXELS, PATCH
from scenes import Scene, make_scene
from tokenizers import Tokenizer
from vocabulary import token_id
from workers import share_out

KINDS = (*QUESTION_KINDS, *PAGE_QUESTION_KINDS, *PAIR_QUESTION_KINDS)
AT_MOST = {"colour": 2, "count": 2, "relation": 3, "number": 1, "describe": 1}
AT_MOST_OF_PAGES = {"read": 1, "line": 3}
AT_MOST_OF_PAIRS = {"compare": 2, "find": 2, "colour in": 2, "count in": 1, "number in": 1}
MAX_QUESTIONS = sum(AT_MOST.values())
MAX_TEXT = 128  # tokens of text in a pack; the last questions may not fit
PAIR_SHARE = 0.75  # pairs of scenes, of as many scenes
CHUNK = 200  # pictures a worker makes at a time


@dataclass
class Packs:
    """N packs of T text tokens about I pictures each; see ``packing.Packs``."""

    images: np.ndarray  # (N, I) int64
    tokens: np.ndarray  # (N, T) int16
    targets: np.ndarray  # (N, T) int16
    positions: np.ndarray  # (N, T) int16
    questions: np.ndarray  # (N, T) int8
    segments: np.ndarray  # (N, T) int8
    kinds: np.ndarray  # (N, MAX_QUESTIONS) int8, index into KINDS, -1 for none

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Chunk:
    """Pictures with the packs about them, by group, which number them from 0."""

    patches: np.ndarray  # (P, 3 * PATCH**2) uint8, those of all pictures in the model's order
    sizes: np.ndarray  # (pictures, 2) int64, height and width in image tokens
    packs: dict[str, Packs]


def fit(height: int, width: int) -> tuple[int, int]:
    """Height and width that a picture is resized to: Qwen2-VL's smart_resize."""
    down, across = (round(side / FACTOR) * FACTOR for side in (height, width))
    if down * across > MAX_PIXELS:
        shrink = math.sqrt(height * width / MAX_PIXELS)
        down, across = (
            max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width)
        )
    elif down * across < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        down, across = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    return down, across


def cut_patches(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """The patches of a picture, resized, and its size in image tokens.

    Those of a token follow each other; each has its channels one after the other.
    """
    height, width = fit(image.height, image.width)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    down, across = height // FACTOR, width // FACTOR
    blocks = pixels.reshape(down, MERGE, PATCH, across, MERGE, PATCH, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * PATCH**2), (down, across)


def make_chunks(
    seeds: Mapping[str, Sequence[int]], tokenizer: Tokenizer, workers: int
) -> Iterator[Chunk]:
    """The pictures and packs of these seeds of scenes, words and pages.

    They are the same whatever the number of workers. Pairs are of the scenes.
    """
    jobs = [
        (group, some[start : start + CHUNK])
        for group, some in seeds.items()
        for start in range(0, len(some), CHUNK)
    ]
    yield from share_out(_make_chunk, jobs, workers, _set_up_worker, (tokenizer.to_str(),))


_worker: Tokenizer


def _set_up_worker(tokenizer: str) -> None:
    global _worker
    _worker = Tokenizer.from_str(tokenizer)


def _make_chunk(job: tuple[str, Sequence[int]]) -> Chunk:
    group, seeds = job
    if group == "scenes":
        return make_scene_chunk(seeds, _worker)
    return make_page_chunk(seeds, _worker, one_word=group == "words")


def make_scene_chunk(seeds: Sequence[int], tokenizer: Tokenizer) -> Chunk:
    rng = random.Random(f"{seeds[0]} packing")
    scenes = [make_scene(seed, square=False) for seed in seeds]
    singles = [(scene.choose_questions(AT_MOST), (i,)) for i, scene in enumerate(scenes)]
    pairs = []
    for _ in range(round(PAIR_SHARE * len(scenes))) if len(scenes) > 1 else ():
        first, second = rng.sample(range(len(scenes)), 2)
        pair = Pair(scenes[first], scenes[second])
        pairs.append((pair.choose_questions(AT_MOST_OF_PAIRS), (first, second)))
    cut = _cut_all(scenes, rng)
    packs = {"scenes": _pack_all(singles, tokenizer, rng)}
    if pairs:
        packs["pairs"] = _pack_all(pairs, tokenizer, rng)
    return Chunk(*cut, packs)


def make_page_chunk(seeds: Sequence[int], tokenizer: Tokenizer, one_word: bool) -> Chunk:
    rng = random.Random(f"{seeds[0]} packing pages")
    pages = [make_page(seed, one_word) for seed in seeds]
    asked = [(page.choose_questions(AT_MOST_OF_PAGES), (i,)) for i, page in enumerate(pages)]
    group = "words" if one_word else "pages"
    return Chunk(*_cut_all(pages, rng), {group: _pack_all(asked, tokenizer, rng)})


def _cut_all(
    items: Sequence[Scene] | Sequence[Page], rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    cut = [cut_patches(perhaps_jpeg(item.image, rng)) for item in items]
    return np.concatenate([patches for patches, _ in cut]), np.array([size for _, size in cut])


def _pack_all(
    asked: Sequence[tuple[list[Question], tuple[int, ...]]],
    tokenizer: Tokenizer,
    rng: random.Random,
) -> Packs:
    packed = [(np.array(images), *_pack(questions, tokenizer, rng)) for questions, images in asked]
    return Packs(*(np.stack(parts) for parts in zip(*packed, strict=True)))


def _pack(
    questions: list[Question], tokenizer: Tokenizer, rng: random.Random
) -> tuple[np.ndarray, ...]:
    conversation = rng.random() < CONVERSATION_SHARE
    end = token_id(tokenizer, words.END_OF_TURN)
    turns = []
    for index, question in enumerate(questions):
        text = (words.later_turn if conversation and index else words.tail)(question.text)
        answered = [*tokenizer.encode(question.answer).ids, end]
        turns.append(Turn(tokenizer.encode(text).ids, answered, KINDS.index(question.kind)))
    pad = token_id(tokenizer, words.END_OF_TEXT)
    return pack_turns(turns, conversation, pad, MAX_TEXT, MAX_QUESTIONS)
