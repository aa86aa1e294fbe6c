"""Rows for a model whose images take tokens by their size, and what must become of each.

The model has Qwen3-VL's architecture and a context of 512 tokens, of which an image takes 2 to 24,
each 32 x 32 pixels.
"""

from __future__ import annotations

from corpus_rows import ANYTHING, VIDEO, CorpusRow, asked, error

PAD = "<|vision_start|><|image_pad|><|vision_end|>"
PLAIN = "images/plain.png"  # 160 x 160 pixels, at most 24576: 4 x 4 tokens


def varying_rows() -> list[CorpusRow]:
    """The rows of ``varying-rows.jsonl``."""
    return [
        CorpusRow("good", asked("<image> What is it?"), ANYTHING),
        CorpusRow("own-tokens", asked(f"{PAD} What is it?"), ANYTHING),
        CorpusRow("two", asked("<image><image> Which?", [PLAIN, "images/grey.png"]), ANYTHING),
        CorpusRow("smallest", asked("<image>", "images/1x1.png"), ANYTHING),
        CorpusRow("fewer-pixels", asked("<image>", max_pixels=2048), ANYTHING),
        CorpusRow("more-pixels", asked("<image>", min_pixels=9000), ANYTHING),
        error(
            "strip",
            asked("<image>", "images/10000x1.png"),
            "image_too_large",
            "10000 x 1 pixels: one side is 10000 times the other",
            "up to 200 times",
        ),
        error(
            "many-images",
            asked("<image>" * 260, ["images/1x1.png"] * 260, max_pixels=2048),
            "prompt_too_long",
            "1040 of them for images",
            "the context of 512",
        ),
        error(
            "long-prompt",
            asked("<image>" + " red" * 200),
            "prompt_too_long",
            "16 of them for images",
            "the context of 512",
        ),
        error(
            "no-placeholder", asked("What?"), "image_token_mismatch", "expected 16 or 1", "found 0"
        ),
        error(
            "placeholders", asked("<image>" * 3), "image_token_mismatch", "or 1 image", "found 3"
        ),
        error(
            "images",
            asked("<image>", [PLAIN, PLAIN]),
            "image_token_mismatch",
            "2 images: expected 32 (2 x 16) or 2",
            "found 1",
        ),
        error("no-image", {"prompt": "<image>"}, "image_token_mismatch", "0 images", "found 1"),
        error(
            "interrupted",
            asked("<|image_pad|>a" + "<|image_pad|>" * 15),
            "image_token_mismatch",
            "its 16 image tokens in one run, found 1",
        ),
        error("video", asked("<image>", "images/clip.mp4"), "image_format_unsupported", "a video"),
        error("video-part", {"messages": [VIDEO]}, "prompt_invalid", "videos are not taken"),
        error(
            "more-than-the-run",
            asked("<image>", max_pixels=50_000),
            "resolution_invalid",
            "max_pixels is 50000, above the run's 24576",
        ),
        error(
            "less-than-a-token",
            asked("<image>", max_pixels=1000),
            "resolution_invalid",
            "max_pixels must be at least 1024, got 1000",
        ),
        error(
            "contradiction",
            asked("<image>", min_pixels=4096, max_pixels=2048),
            "resolution_invalid",
            "min_pixels is 4096, above max_pixels, which is 2048",
        ),
        error(
            "no-number",
            asked("<image>", min_pixels="few"),
            "resolution_invalid",
            "min_pixels must be an integer, got 'few' (str)",
        ),
    ]
