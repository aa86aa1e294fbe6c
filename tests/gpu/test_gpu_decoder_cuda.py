"""nvJPEG beside Pillow: nearly the same pixels, the same images refused, the same answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from encoding import encoded
from image_processors import PROCESSORS
from kernel_cases import count_resample_launches
from PIL import Image, ImageFilter
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vlmbatch.bench.photos import make_photo
from vlmbatch.config import ImageLimits
from vlmbatch.errors import RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.images.jpeg import PlainJpeg, read_plain_jpeg
from vlmbatch.images.loading.loader import InProcessLoader
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.models.preprocessor_config import Normalization
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.nvjpeg.decoder import NvJpegDecoder
from vlmbatch.nvjpeg.tensor_image import TensorImage
from vlmbatch.session.gpu_decoder import _DEVICE_BYTES, gpu_decoder
from vlmbatch.types import ImageRef, PixelImage

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
LIMITS = ImageLimits()
CUBIC, HALVES = Image.Resampling.BICUBIC, (0.5, 0.5, 0.5)
LLAVA = LlavaImageProcessor(
    *(336, CUBIC, (336, 336), None, 1 / 255, HALVES, HALVES, (336, 336), (24, 24), 576)
)
QWEN = QwenImageProcessor(32, 65536, 2**20, CUBIC, Normalization(1 / 255, HALVES, HALVES))


@pytest.fixture(scope="module")
def decoder() -> Iterator[NvJpegDecoder]:
    """Other tests here want more than a decoder's memory."""
    yield NvJpegDecoder("cuda")
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_decoder_imports_neither_torchvision_nor_torchs_compiler() -> None:
    code = (
        "import sys; from vlmbatch.nvjpeg.decoder import NvJpegDecoder; NvJpegDecoder('cuda');"
        "print(*{'torchvision', 'torch._dynamo'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def plain(data: bytes) -> PlainJpeg:
    file = read_plain_jpeg(ImageRef(data=data), LIMITS, 2**26)
    assert file is not None
    return file


def decoded(decoder: NvJpegDecoder, *files: bytes) -> list[TensorImage]:
    images = decoder.decode([plain(data) for data in files])
    assert all(image is not None for image in images)
    return [image for image in images if image is not None]


def exact(data: bytes) -> Image.Image:
    return decode_image(ImageRef(data=data), LIMITS)


def differences(ours: object, theirs: object) -> np.ndarray[Any, Any]:
    return np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))


def picture(size: tuple[int, int] = (640, 480), orientation: int = 1, **options: Any) -> bytes:
    """Smooth: what chroma is made of between its samples is another's affair."""
    photo = make_photo(size, (7, *size)).filter(ImageFilter.GaussianBlur(2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = photo.convert(options.pop("mode", "RGB"))
    return encoded(photo, "JPEG", exif=exif, **{"quality": 92, **options})


@pytest.mark.parametrize("processor", [LLAVA, QWEN], ids=["336 squared", "a megapixel"])
@pytest.mark.parametrize("size", [(640, 480), (1600, 1200), (4032, 3024), (3024, 4032)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_after_resizing_pixels_hardly_differ(
    decoder: NvJpegDecoder, processor: Any, size: tuple[int, int], subsampling: int
) -> None:
    data = encoded(make_photo(size, (1, *size)), "JPEG", quality=85, subsampling=subsampling)
    (image,) = decoded(decoder, data)
    ours, theirs = processor.process(image), processor.process(exact(data))
    assert ours.grid == theirs.grid
    found = differences(ours.pixels, theirs.pixels)
    mean, most = found.mean(), np.quantile(found, 0.99)
    print(f"\n{size} subsampling {subsampling}: mean {mean:.3f}, 99 % {most:.0f}")
    assert mean < 1
    assert most <= 8


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_photographs(decoder: NvJpegDecoder, path: Path) -> None:
    (image,) = decoded(decoder, path.read_bytes())
    ours, theirs = LLAVA.process(image), LLAVA.process(exact(path.read_bytes()))
    assert differences(ours.pixels, theirs.pixels).mean() < 1.5


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_image_processor(decoder: NvJpegDecoder, name: str) -> None:
    data = picture(orientation=6)
    (image,) = decoded(decoder, data)
    ours, theirs = (PROCESSORS[name].process(each) for each in (image, exact(data)))
    assert ours.grid == theirs.grid
    assert differences(ours.pixels, theirs.pixels).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(decoder: NvJpegDecoder, orientation: int) -> None:
    data = picture(orientation=orientation)
    (image,) = decoded(decoder, data)
    assert differences(image, exact(data)).mean() < 1.5


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 50), (50, 1), (7, 9), (8, 8), (17, 33), (641, 479), (16, 2000)]
)
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_odd_sizes(decoder: NvJpegDecoder, size: tuple[int, int], kind: str) -> None:
    options = {"mode": "L"} if kind == "grey" else {"subsampling": kind}
    data = picture(size, **options)
    (image,) = decoder.decode([plain(data)])
    if image is not None:  # else a worker has it
        assert (image.width, image.height) == size
        subsampled = kind in ("4:2:2", "4:2:0")  # libjpeg interpolates chroma, nvJPEG repeats it
        assert differences(image, exact(data)).mean() < (4 if subsampled else 2)


def test_restart_markers(decoder: NvJpegDecoder) -> None:
    data, marked = picture(), picture(restart_marker_rows=2)
    ours, theirs = decoded(decoder, data, marked)
    assert differences(ours, theirs).mean() < 0.5


def test_batches_change_nothing(decoder: NvJpegDecoder) -> None:
    sizes = [(640, 480), (1001, 750), (64, 64), (2000, 1500), (640, 480), (480, 640)]
    files = [picture(size, subsampling=index % 3) for index, size in enumerate(sizes)]
    alone = [decoded(decoder, data)[0].pixels for data in files]
    for _ in range(3):
        together = [image.pixels for image in decoded(decoder, *files)]
        assert all(map(torch.equal, together, alone))


def test_images_made_together_are_those_made_alone(decoder: NvJpegDecoder) -> None:
    """And the twin's: two kernels for all of them, and two for what is made first."""
    sizes = [(640, 480), (1001, 750), (64, 900), (2000, 1500), (480, 640)]
    files = [picture(size, 1 + index % 8) for index, size in enumerate(sizes * 4)]
    images = decoded(decoder, *files)
    on_host = [TensorImage(torch.from_numpy(np.asarray(each)).permute(2, 0, 1)) for each in images]

    def resized(index: int, image: Any) -> Any:
        if index % 3 == 0:
            image = image.resize((300, 200), CUBIC)
        box = (1.5, 0.25, image.width - 2.25, image.height - 0.5) if index % 3 == 1 else None
        return image.resize((37 + 16 * index, 336 - 9 * index), CUBIC, box)

    together, alone = ([resized(*each) for each in enumerate(images)] for _ in range(2))
    with count_resample_launches() as grids:
        decoder.make(together)
    assert [grid[2] for grid in grids] == [20, 20, 7, 7]
    for index, (ours, by_itself) in enumerate(zip(together, alone, strict=True)):
        expected = resized(index, on_host[index])
        assert differences(ours, expected).max() == 0
        assert differences(by_itself, expected).max() == 0


def test_a_batch_costs_two_kernels_beside_nvjpegs(decoder: NvJpegDecoder) -> None:
    """Turned or not; all else that is asked of the GPU are copies."""
    files = [picture((640 + 16 * index, 480), 1 + index) for index in range(8)]
    decoded(decoder, *files)  # so that there is memory
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        resized = [LLAVA.resize(image) for image in decoded(decoder, *files)]
        decoder.make([image for each in resized for image in each.images])
        for each in resized:
            LLAVA.finish(each)
    names = [each.name for each in profiler.events() if each.device_type == DeviceType.CUDA]
    assert sum("_resample" in name for name in names) == 2
    assert [name for name in names if "at::native" in name] == []  # torch's own kernels


@pytest.fixture(scope="module")
def pool() -> Iterator[ImageWorkers]:
    workers = ImageWorkers(LIMITS, LLAVA, 2, 60.0, 64, 0, "gpu", partial(NvJpegDecoder, "cuda", 0))
    with closing(workers):
        workers.wait_ready()
        yield workers


def test_damage_costs_no_other_image(pool: ImageWorkers) -> None:
    """Of a damaged scan, of which libjpeg only warns, comes an image, or an error of its own."""
    good = picture()
    alone = pool.submit(ImageRef(data=good)).result().content_hash
    for seed in range(20):
        data, rng = bytearray(good), np.random.default_rng(seed)
        start = data.index(b"\xff\xda") + 20
        for at in rng.integers(start, len(data) - 2, 5):
            data[at] = 0x55
        cut = bytes(data[: start + 400]) + b"\xff\xd9"
        files = [good, bytes(data), cut, good + b"%d" % seed]
        futures = [pool.submit(ImageRef(data=each)) for each in files]
        assert futures[0].result().content_hash == alone
        assert futures[3].result().content_hash == alone
        for future in futures[1:3]:
            assert isinstance(future.exception(), RowError | None)


def test_what_is_no_plain_jpeg_is_exact(pool: ImageWorkers) -> None:
    here = InProcessLoader(LIMITS, LLAVA)
    whole = picture()
    for data in (
        picture(progressive=True),
        picture(mode="CMYK"),
        picture(keep_rgb=True),
        encoded(make_photo((300, 200), (1,))),
    ):
        ours, theirs = (each.submit(ImageRef(data=data)).result() for each in (pool, here))
        assert ours.content_hash == theirs.content_hash
    for data in (whole[:-2], whole[: len(whole) // 2], whole[:300], b"<html>", b""):
        with pytest.raises(RowError) as caught:
            pool.submit(ImageRef(data=data)).result()
        with pytest.raises(RowError) as expected:
            here.submit(ImageRef(data=data)).result()
        assert (caught.value.code, caught.value.message) == (
            expected.value.code,
            expected.value.message,
        )


def test_many_images_through_the_process(pool: ImageWorkers) -> None:
    here = InProcessLoader(LIMITS, LLAVA)
    refs = [ImageRef(data=picture((600 + 8 * n, 480), 1 + n % 8)) for n in range(60)]
    hashes = set()
    for ref, future in zip(refs, [pool.submit(ref) for ref in refs], strict=True):
        ours, theirs = future.result(), here.submit(ref).result()
        assert isinstance(ours, PixelImage) and isinstance(theirs, PixelImage)
        assert differences(ours.pixels, theirs.pixels).mean() < 1
        hashes |= {ours.content_hash, theirs.content_hash}
    assert len(hashes) > 100  # most were decoded by the GPU, and none twice


@pytest.mark.whole_gpu
def test_the_process_takes_no_more_memory_than_is_left_to_it() -> None:
    files = [picture((4032, 3024), seed, comment=b"%d" % seed) for seed in range(1, 9)]
    ramp = Image.linear_gradient("L").convert("RGB")
    files += [encoded(ramp.resize(size), "JPEG") for size in ((9000, 7000), (11000, 11000))]
    before = torch.cuda.mem_get_info()[0]
    least = before
    with closing(ImageWorkers(LIMITS, QWEN, 1, 60.0, 64, 0, "gpu", gpu_decoder())) as workers:
        workers.wait_ready()
        for _ in range(3):
            futures = [workers.submit(ImageRef(data=data)) for data in files]
            for future in futures:
                future.exception()
                least = min(least, torch.cuda.mem_get_info()[0])
    print(f"\n{(before - least) / 2**20:.0f} MiB")
    assert before - least <= _DEVICE_BYTES


@pytest.mark.parametrize(
    ("model", "name"),
    [("tiny-llava", "manifest.jsonl"), ("tiny-qwen-vl", "manifest-qwen-vl.jsonl")],
)
def test_answers_of_the_sample_models(model: str, name: str, tmp_path: Path) -> None:
    """Their pictures as JPEGs of more than a megapixel; nearly all answers are the same text."""
    rows = [json.loads(line) for line in (ROOT / "samples" / name).read_text().splitlines()]
    kept = []
    for row in rows:
        given = row["image"] if isinstance(row["image"], list) else [row["image"]]
        try:
            made = [_enlarged(ROOT / "samples" / each, tmp_path) for each in given]
        except OSError:  # the truncated one
            continue
        kept.append({**row, "image": made if isinstance(row["image"], list) else made[0]})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    texts = {}
    for decoder in ("exact", "gpu"):
        output = tmp_path / f"{decoder}.parquet"
        command = ["run", tmp_path / "m.jsonl", "-m", ROOT / "samples" / model, "-o", output, "-q"]
        options = ["--image-decoder", decoder, "--image-workers", "2", "--device", "cuda"]
        done = subprocess.run([sys.executable, "-m", "vlmbatch", *map(str, command), *options])
        assert done.returncode in (0, 1)
        texts[decoder] = [row["text"] for row in pq.read_table(output).to_pylist()]
    answered = [text for text in texts["exact"] if text is not None]
    same = sum(a == b for a, b in zip(texts["exact"], texts["gpu"], strict=True))
    print(f"\n{model}: {same} of {len(kept)} answers are the same")
    assert len(answered) > len(kept) / 2
    assert same >= 0.95 * len(kept)


def _enlarged(path: Path, folder: Path) -> str:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    name = f"{path.stem}.jpg"
    times = math.ceil(math.sqrt(2**20 / (image.width * image.height)))
    image.resize((times * image.width, times * image.height), CUBIC).save(folder / name, quality=90)
    return name


def test_small_images_are_exact() -> None:
    """They would cost the engine more than they spare the workers."""
    here = InProcessLoader(LIMITS, LLAVA)
    with closing(ImageWorkers(LIMITS, LLAVA, 1, 60.0, 64, 0, "gpu", gpu_decoder())) as workers:
        workers.wait_ready()
        for size, is_exact in (((640, 480), True), ((1600, 1200), False)):
            ref = ImageRef(data=picture(size))
            ours, theirs = (each.submit(ref).result() for each in (workers, here))
            assert (ours.content_hash == theirs.content_hash) == is_exact


def test_a_process_that_is_killed_costs_no_row() -> None:
    workers = ImageWorkers(LIMITS, LLAVA, 1, 60.0, 64, 0, "gpu", partial(NvJpegDecoder, "cuda", 0))
    with closing(workers):
        workers.wait_ready()
        first = workers.submit(ImageRef(data=picture())).result()
        (process,) = [each for each in workers._processes if "Device" in type(each).__name__]
        process.kill()
        again = workers.submit(ImageRef(data=picture())).result()
        assert first.content_hash == again.content_hash
