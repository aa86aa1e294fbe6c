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
_ISO_MEDIA_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
}


def known_format(head: bytes) -> str | None:
    """The readable format that the file's first bytes announce."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _SIGNATURES if head.startswith(magic)), None)


def foreign_format(head: bytes) -> str | None:
    """The format that the first bytes announce, if it is one that is not read."""
    if head[4:8] == b"ftyp":
        return _ISO_MEDIA_BRANDS.get(head[8:12])
    return next((name for magic, name in _FOREIGN_SIGNATURES if head.startswith(magic)), None)


def video_format(head: bytes) -> str | None:
    """The kind of video that the first bytes announce; ``foreign_format`` goes first."""
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
    """Read the header by the decoder of format ``name``; raises what Pillow's plugins raise."""
    file.seek(0)
    return DECODERS[name](file)
