"""Writes the corpus of bad inputs, in its own folder. The samples' scripts draw its scenes.

PYTHONPATH=samples python tests/corpus/make_corpus.py
"""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Iterator
from pathlib import Path

import corpus_features as features
import corpus_pictures as pictures
import corpus_refusals as refusals
from corpus_rows import CorpusRow, corpus_rows
from corpus_varying import varying_rows

HERE = Path(__file__).parent


def rows_manifest(rows: list[CorpusRow]) -> bytes:
    """With a byte order mark, and no newline at the end."""
    return codecs.BOM_UTF8 + b"\n".join(row.line for row in rows)


def corpus_files() -> Iterator[tuple[str, bytes]]:
    """Every file of the corpus: its path and its content."""
    yield "rows.jsonl", rows_manifest(corpus_rows())
    yield "varying-rows.jsonl", rows_manifest(varying_rows())
    yield "feature-rows.jsonl", rows_manifest(features.feature_rows())
    yield from ((f"features/{name}", data) for name, data in features.feature_files())
    for files in (
        pictures.colour_pictures(),
        pictures.grey_pictures(),
        pictures.odd_sizes(),
        pictures.bad_pictures(),
    ):
        yield from ((f"images/{name}", data) for name, data in files)
    yield "images/features.pt", refusals.PICKLE
    yield "images/features.pkl", refusals.PICKLE
    yield from ((f"manifests/{name}", data) for name, data in refusals.refused_manifests())
    yield from ((f"manifests/{name}", data) for name, data in refusals.accepted_manifests())
    yield from ((f"checkpoints/{name}", data) for name, data in refusals.checkpoint_files())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    folder = parser.parse_args().out
    for name, data in corpus_files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
