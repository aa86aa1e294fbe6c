"""Decoders that misbehave on request: loaded by every Python that has this folder in its path.

What becomes of an image is in the end of its name; all others are decoded as ever. ``.counted``
images leave a byte in a file beside them for each time they are decoded.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from pathlib import Path

from PIL import Image

import vlmbatch.images.decode
from vlmbatch.config import ImageLimits
from vlmbatch.images.decode import decode_image
from vlmbatch.types import ImageRef


def hostile_decode(ref: ImageRef, limits: ImageLimits) -> Image.Image:
    path = Path(ref.path or "")
    match path.suffix:
        case ".crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case ".hang":
            while True:
                time.sleep(60)
        case ".bug":
            raise KeyError("planted in a decoder")
        case ".greedy":
            bytearray(8 * 2**30)
        case ".liar":
            lies = b'["code"]', b'{"code": "none", "message": ""}', b"{}", b"[" * 10**5
            lie = lies[int(path.stem)]
            os.write(int(sys.argv[1]), struct.pack("<IQ", len(lie), 0) + lie)
        case ".drip":
            while os.write(int(sys.argv[1]), b"\1"):
                time.sleep(0.2)
        case ".counted":
            with path.with_suffix(".count").open("ab") as file:
                file.write(b".")
            time.sleep(0.05)
    return decode_image(ref, limits)


vlmbatch.images.decode.decode_image = hostile_decode
