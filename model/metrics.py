"""How near a decoded image is to its source, and how well codes are used."""

from __future__ import annotations

import math

import numpy as np

EXACT_PSNR = 999.0  # stands for infinite, which JSON cannot say
WINDOW = 7


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
    x, y = a.astype(np.float64), b.astype(np.float64)
    offset = x.mean()  # variances of centred numbers lose no digits
    x, y = x - offset, y - offset
    n = WINDOW * WINDOW
    mean_x, mean_y = _box(x), _box(y)
    scale = n / (n - 1)
    var_x = scale * (_box(x * x) - mean_x * mean_x)
    var_y = scale * (_box(y * y) - mean_y * mean_y)
    both = scale * (_box(x * y) - mean_x * mean_y)
    mean_x, mean_y = mean_x + offset, mean_y + offset
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


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
    """Means over all windows that lie inside, [y - 6, x - 6]."""
    for axis in (0, 1):
        total = np.cumsum(image, axis=axis)
        total = np.insert(total, 0, 0.0, axis=axis)
        upper = np.take(total, range(WINDOW, total.shape[axis]), axis=axis)
        image = (upper - np.take(total, range(total.shape[axis] - WINDOW), axis=axis)) / WINDOW
    return image
