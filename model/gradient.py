"""How the decoder's gradient passes the rounding to codes: straight through, or turned with the code."""

from __future__ import annotations

from torch import Tensor

SMALL = 1e-6  # vectors shorter than this have no direction


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` forwards, the identity backwards (Bengio 2013, 1308.3432); float32 [N, d] both."""
    return latents + (quantized - latents).detach()


def rotated(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` forwards; backwards the rotation and scaling that take each latent to its code, held constant.

    Fifty 2024 (2410.06424): the gradient keeps its angle to the code, so that latents of one cell are not all pushed
    alike. latents, quantized: float32 [N, d], relative to the codebook's centre. Where either has no direction, or
    they are opposite, it is straight through.
    """
    e, q = latents.detach(), quantized.detach()
    long_e, long_q = e.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)
    from_, to = e / long_e.clamp_min(SMALL), q / long_q.clamp_min(SMALL)
    half = from_ + to
    long_half = half.norm(dim=1, keepdim=True)
    half = half / long_half.clamp_min(SMALL)
    # R = I - 2 r r' + 2 q^ e^', a reflection pair: never formed, only applied.
    turned = (
        latents - 2 * half * (half * latents).sum(1, keepdim=True) + 2 * to * (from_ * latents).sum(1, keepdim=True)
    )
    turned = turned * (long_q / long_e.clamp_min(SMALL))
    legal = (long_e > SMALL) & (long_q > SMALL) & (long_half > SMALL)
    through = turned.where(legal, latents)
    return through + (q - through).detach()  # forwards the code itself, to the last bit but rounding
