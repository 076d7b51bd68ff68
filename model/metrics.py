"""How near a decoded image is to its source, and how well codes are used."""

from __future__ import annotations

import math

import numpy as np

EXACT_PSNR = 999.0  # stands for infinite, which JSON cannot say
WINDOW = 7
FAR = 16.0  # ranges from the mean up to which float32 gives SSIM to 1e-4


def psnr(mse: float, peak: float) -> float:
    """Peak signal to noise ratio in dB; 999 where there is no error at all."""
    return EXACT_PSNR if mse <= 0 else min(EXACT_PSNR, 10 * math.log10(peak * peak / mse))


def ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> float | None:
    """Structural similarity of two images [y, x] (Wang 2004), as scikit-image's structural_similarity gives it.

    Window 7, flat, sample covariance, K1 = 0.01, K2 = 0.03, mean over all windows inside. None where an image is
    smaller than the window, or has no range.
    """
    if min(a.shape) < WINDOW or data_range <= 0:
        return None
    offset = float(np.mean(a, dtype=np.float64))
    # Variances of centred numbers lose no digits; of those that lie far outside of the range float32 keeps too few.
    far = max(
        float(np.max(a)) - offset, offset - float(np.min(a)), float(np.max(b)) - offset, offset - float(np.min(b))
    )
    kind = np.float32 if far <= FAR * data_range else np.float64
    x, y = (np.subtract(image, offset, dtype=np.float64).astype(kind) for image in (a, b))
    n = WINDOW * WINDOW
    mean_x, mean_y, squares, product = _box(x), _box(y), _box(x * x + y * y), _box(x * y)
    scale = kind(n / (n - 1))
    means = mean_x * mean_y
    both = scale * (product - means)
    variances = scale * (squares - mean_x * mean_x - mean_y * mean_y)
    mean_x += kind(offset)
    mean_y += kind(offset)
    c1, c2 = kind((0.01 * data_range) ** 2), kind((0.03 * data_range) ** 2)
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean(dtype=np.float64))


def entropy(counts: np.ndarray) -> float:
    """Zero-order entropy in bits per symbol of a histogram."""
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def perplexity(counts: np.ndarray) -> float:
    """2 ** entropy: how many codes are as good as evenly used."""
    return float(2.0 ** entropy(counts))


def use(counts: np.ndarray) -> float:
    """Share of the codes that occur at all."""
    return float((counts > 0).mean())


def histogram(codes: np.ndarray, size: int) -> np.ndarray:
    """Counts int64 [L, size] of codes [L, ...]."""
    return np.stack([np.bincount(level.ravel(), minlength=size) for level in codes])


def _box(image: np.ndarray) -> np.ndarray:
    """Means over all windows that lie inside, [y - 6, x - 6]; 7 = 4 + 2 + 1, so that four sums make one of seven."""
    for _ in range(2):  # along y, then along x by way of a transpose that copies nothing
        size = len(image) - WINDOW + 1
        two = image[:-1] + image[1:]
        total = two[:size] + two[2 : size + 2]
        total += two[4 : size + 4]
        total += image[6 : size + 6]
        image = total.T
    return image * image.dtype.type(1 / (WINDOW * WINDOW))


def divergence(counts: np.ndarray, expected: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits of two histograms of one length: 0 for equal shares, 1 for nothing in common.

    Lin 1991, Divergence measures based on the Shannon entropy.
    """
    p, q = (np.asarray(part, np.float64) / np.sum(part, dtype=np.float64) for part in (counts, expected))
    middle = (p + q) / 2
    found = 0.0
    for part in (p, q):
        there = part > 0
        found += float((part[there] * np.log2(part[there] / middle[there])).sum()) / 2
    return min(1.0, max(0.0, found))
