"""Every transfer syntax that voxbook reads, really decoded: codecs that import may still not work.

The codestreams are of an 8 x 8 ramp, written for this by imagecodecs 2026.3.6 (libjpeg-turbo, CharLS, OpenJPEG, OpenJPH)
and pylibjpeg-rle.
"""

from __future__ import annotations

import base64
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archive.codestreams import DEFLATED_FRAME, RLE, UNCOMPRESSED
from archive.decoder import PixelDecoder
from archive.errors import InputError
from archive.settings import IngestSettings

JPEG = "1.2.840.10008.1.2.4."
RAMP = np.arange(64).reshape(8, 8)
GREY_8, GREY_12 = (RAMP * 3 + 20).astype(np.uint8), (RAMP * 50 + 300).astype(np.uint16)

JPEG_8 = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
    "DAsKDAkKCgr/wAALCAAIAAgBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQR"
    "BRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4"
    "eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEB"
    "AAA/AOJ8Ef8ABEr7n/FI/wDkD/61f//Z"
)
JPEG_12 = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQEBAQEAgMF"
    "BQQEBQQEBAT/wQALDAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAC//EABwQAAAGAwAAAAAAAAAAAAAAAAAKDSo3SFRlc//aAAgBAQAA"
    "PwApcjghw0PtBcGjfPWD/9k="
)
JPEG_LOSSLESS = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAIAAgBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABgkL/9oACAEBAAEAAMStkyZMmTJlZBkyZMmT"
    "JlZBkyZMmTJlZBkyZMmTJlZBkyZMmTJlZBkyZMmTJlZBkyZMmTJlZBkyZMmTJl//2Q=="
)
JPEG_LS = (
    "/9j/6AAgU1BJRkYAAgAAAQAAAAgAAAAIChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAgACAEBEQD/+AANAf//ABIAQwEUAED/2gAIAQEA"
    "AAAAZXjHGGX5drdZq/IIyRimCXq5WoycerFWqlSqGdGLjmZlZGNiYUwcawL68uri2l7jFpZWFdWVVcYtUVFNmyZK0xTFiwYL16sA/9k="
)
JPEG_2000 = (
    "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVhdGVkIGJ5"
    "IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAB2AAH/k8/8MZARUFSvhG9RESGMZ2jMSk8cU/IZWgfte+go9GBveuzXGQyZ6c5m8N0y"
    "lOdmFKVUF/SlKAeNltExQe5mqFLxOadQInm3UPSebg8xKPNh+bD803wMnW+tpdW0vDhsNhsNhsNhsR6b/9k="
)
HTJ2K = (
    "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQ"
    "kJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFkAAf+TwAAmofUFB3QAAADAABLAABMAxgGHdABA/gMHdADAABNA"
    "ABOAYPABAnQABjf4AKNUAMAAKiAAFWCiKIqqcIJ1AB579OjxwEIB7LYA/9k="
)
RLE_SEGMENTS = (
    "AgAAAEAAAABmAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPwB/gL/AvwDAAT9BP0FAAX8"
    "Bv8H/gf8CAAI/An/Cv4K/Av8DP4NByxekML0JliKB7zuIFKEtugaB0x+sOIURniqB9wOQHKk1gg6B2ye0AI0ZpjKB/wuYJLE9ihaB4y+8CJU"
    "hrjqBxxOgLLkFkh6"
)


@dataclass(frozen=True)
class Sample:
    """One transfer syntax: its UID and name, base64 of a codestream, what it shows, and how far a voxel may be off."""

    syntax: str
    name: str
    data: str
    shown: np.ndarray
    off_by: int = 0


def _plain(data: bytes) -> str:
    return base64.b64encode(data).decode()


_DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
SAMPLES = (
    Sample(JPEG + "50", "JPEG 8 bits", JPEG_8, GREY_8, 4),
    Sample(JPEG + "51", "JPEG 12 bits", JPEG_12, GREY_12, 16),
    Sample(JPEG + "57", "JPEG lossless", JPEG_LOSSLESS, GREY_12),
    Sample(JPEG + "70", "JPEG lossless, first order", JPEG_LOSSLESS, GREY_12),
    Sample(JPEG + "80", "JPEG-LS lossless", JPEG_LS, GREY_12),
    Sample(JPEG + "81", "JPEG-LS near-lossless", JPEG_LS, GREY_12),
    Sample(JPEG + "90", "JPEG 2000 lossless", JPEG_2000, GREY_12),
    Sample(JPEG + "91", "JPEG 2000", JPEG_2000, GREY_12),
    Sample(JPEG + "201", "HTJ2K lossless", HTJ2K, GREY_12),
    Sample(JPEG + "202", "HTJ2K lossless RPCL", HTJ2K, GREY_12),
    Sample(JPEG + "203", "HTJ2K", HTJ2K, GREY_12),
    Sample(RLE, "RLE", RLE_SEGMENTS, GREY_12),
    Sample(UNCOMPRESSED, "encapsulated uncompressed", _plain(GREY_12.tobytes()), GREY_12),
    Sample(DEFLATED_FRAME, "deflated frame", _plain(_DEFLATE.compress(GREY_12.tobytes()) + _DEFLATE.flush()), GREY_12),
)


def broken(samples: tuple[Sample, ...] = SAMPLES) -> dict[str, str]:
    """Names of the transfer syntaxes that do not decode here as they should, and why in a word (a reason code)."""
    found = {}
    settings = IngestSettings()
    with tempfile.TemporaryDirectory(prefix="voxbook-codecs-") as folder, PixelDecoder(settings) as decoder:
        for sample in samples:
            path = Path(folder, sample.syntax)
            path.write_bytes(encapsulated(base64.b64decode(sample.data)))
            header = {
                **{"syntax": sample.syntax, "rows": 8, "columns": 8, "samples": 1, "frames": 1},
                **{"allocated": 8 * sample.shown.itemsize, "pixels": [0, 0, -1, 0, 0]},
            }
            try:
                array = decoder.decode(path, header, 0, sample.shown.nbytes).array
            except InputError as error:
                found[sample.name] = error.code
                continue
            if array.ndim == 1:  # only wrapped
                array = array.view(sample.shown.dtype).reshape(8, 8)
            if np.abs(array.astype(int) - sample.shown).max() > sample.off_by:
                found[sample.name] = "wrong values"
    return found


def encapsulated(codestream: bytes) -> bytes:
    """An empty offset table, one fragment, the end (PS3.5 A.4)."""
    padded = codestream + b"\0" * (len(codestream) % 2)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(padded)) + padded
    return items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
