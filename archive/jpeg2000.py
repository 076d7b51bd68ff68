"""JPEG 2000 at a given number of bytes: the peer that certificates compare codes with."""

from __future__ import annotations

import numpy as np

LEAST_SIZE = 64  # six wavelet resolutions want that much; smaller images tell nothing about a rate anyway
HEADER_BYTES = 120  # main and tile headers of a small codestream


def round_trip(image: np.ndarray, size_bytes: float, bits: int) -> np.ndarray | None:
    """An image after JPEG 2000 (irreversible 9-7, one layer) of about `size_bytes`, same shape and dtype.

    image: uint8 or uint16 [y, x], or uint8 [y, x, 3]; bits: those that its values need (ISO/IEC 15444-1, by OpenJPEG).
    None where the image is too small, or the bytes too few, for a codestream.
    """
    from openjpeg.utils import decode, encode_array  # only where a certificate is made

    if min(image.shape[:2]) < LEAST_SIZE or size_bytes <= HEADER_BYTES:
        return None
    # OpenJPEG counts the ratio against the bits stored, not against the bytes of the dtype.
    ratio = image.size * bits / 8 / size_bytes
    if ratio <= 1:
        return image.copy()
    colour = image.ndim == 3
    stream = encode_array(
        np.ascontiguousarray(image),
        bits_stored=bits,
        photometric_interpretation=1 if colour else 2,
        compression_ratios=[float(ratio)],
    )
    return np.asarray(decode(stream)).reshape(image.shape).astype(image.dtype)
