"""Which image formats are read, and how a file's first bytes tell them."""

from __future__ import annotations

from typing import BinaryIO

from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vlmbatch.models import git_lfs

_one_thread = False  # else as many as the decoders themselves take

# Enough for every signature below.
HEAD_BYTES = 64

# Pillow's classes, not Image.open: its process-wide pixel limit would warn and refuse below ours.
# A multi-picture file (MPO) is a JPEG with more pictures behind the first.
DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
# Rarer ones, whose libraries are as large as all others': they are loaded when one comes.
ISO_FORMATS = ("AVIF", "HEIC")

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_NEW_SUBFILE_TYPE = 254

# Recognised so that the message can name them, but not read.
_FOREIGN_SIGNATURES = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"DDS ", "DDS"),
    (b"FUJIFILMCCD-RAW", "RAF"),
    (b"IIRO", "ORF"),
    (b"IIRS", "ORF"),
    (b"IIU\0", "RW2"),
    (b"qoif", "QOI"),
    (b"<svg", "SVG"),
    *((b"P%d" % kind, "PNM") for kind in range(1, 7)),
)
_VIDEO_SIGNATURES = (
    (b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (b"FLV\x01", "FLV"),
    (b"\0\0\1\xba", "MPEG"),
    (b"\0\0\1\xb3", "MPEG"),
    (b"OggS", "Ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMV"),
)
_VIDEO_BOXES = (b"moov", b"mdat", b"wide", b"pnot")  # of QuickTime files of before brands
# ISO/IEC 23008-12, and AV1 Image File Format. Of an image of unnamed coding, mif1 or msf1, the
# compatible brands tell it.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_UNNAMED_BRANDS = {b"mif1", b"msf1"}


def known_format(head: bytes) -> str | None:
    """The readable format that the file's first bytes announce."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _iso_media_format(head)
    return next((name for magic, name in _SIGNATURES if head.startswith(magic)), None)


def foreign_format(head: bytes) -> str | None:
    """The format that the first bytes announce, if it is one that is not read."""
    if head[4:12] == b"ftypcrx ":
        return "CR3"
    return next((name for magic, name in _FOREIGN_SIGNATURES if head.startswith(magic)), None)


def video_format(head: bytes) -> str | None:
    """The kind of video that the first bytes announce; ``known_format`` goes first."""
    if head[4:8] == b"ftyp":  # MP4 has more brands than anyone knows
        return "QuickTime" if head[8:12] == b"qt  " else "MP4"
    if head[4:8] in _VIDEO_BOXES:
        return "QuickTime"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    return next((name for magic, name in _VIDEO_SIGNATURES if head.startswith(magic)), None)


def foreign_content(head: bytes) -> str:
    """What stands in the place of an image, by its first bytes."""
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<head")):
        return "a web page (HTML)"  # often an error message
    if git_lfs.is_pointer(head):
        return git_lfs.IS_POINTER
    return f"it starts with {head[:8]!r}"


def open_decoder(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Read the header by the decoder of format ``name``.

    Raises:
        ImportError: what reads it is not installed, or not as it is needed here; what to do.
        Exception: what Pillow's plugins raise.
    """
    file.seek(0)
    decoder = _rare_decoder(name) if name in ISO_FORMATS else DECODERS[name]
    image = decoder(file)
    if name == "AVIF":
        image.info.pop("xmp", None)  # Pillow would turn it by that, where the file says not to
    return image


def is_preview(image: ImageFile.ImageFile) -> bool:
    """Whether the first picture is a reduced one of another in the same file: TIFF 6.0,
    NewSubfileType."""
    return isinstance(image, TiffImageFile) and bool(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1)


def decode_on_one_thread() -> None:
    """In this process, of which there are many: decoders of AVIF and HEIC take several threads."""
    global _one_thread
    _one_thread = True


def _rare_decoder(name: str) -> type[ImageFile.ImageFile]:
    if name == "AVIF":
        from PIL import AvifImagePlugin

        if not AvifImagePlugin.SUPPORTED:
            raise ImportError(
                "this build of Pillow lacks it: pip install --force-reinstall "
                "--only-binary :all: 'pillow>=12.0'"
            )
        if _one_thread:
            AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        return AvifImagePlugin.AvifImageFile
    try:
        from pillow_heif import HeifImageFile, options
    except ModuleNotFoundError as error:
        raise ImportError(
            "pillow-heif is not installed: pip install 'vlmbatch[heic]', or convert the image to "
            f"one of {', '.join(DECODERS)}"
        ) from error
    if _one_thread:
        options.DECODE_THREADS = 0  # beside the one that asks
    decoder: type[ImageFile.ImageFile] = HeifImageFile
    return decoder


def _iso_media_format(head: bytes) -> str | None:
    size = int.from_bytes(head[:4], "big")
    major, compatible = head[8:12], head[16:size]
    brands = {major}
    if major in _UNNAMED_BRANDS:
        brands |= {compatible[at : at + 4] for at in range(0, len(compatible), 4)}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & (_HEIC_BRANDS | _UNNAMED_BRANDS) else None
