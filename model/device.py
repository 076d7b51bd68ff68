"""Which device to use, and the arithmetic that the profiles promise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from archive.errors import ConfigError


def pick(device: str | torch.device | None = "auto") -> torch.device:
    """auto (CUDA where there is one), cpu, cuda or cuda:N; raises ConfigError BAD_VALUE where it is not there."""
    name = str(device or "auto")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise ConfigError("BAD_VALUE", f"no device is called {name!r}", hint="auto, cpu, cuda or cuda:N") from None
    if wanted.type == "cuda" and not (torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()):
        raise ConfigError("BAD_VALUE", f"{name} is not on this machine", hint="device = 'auto' takes what there is")
    return wanted


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 there: GPUs since Ampere, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextlib.contextmanager
def arithmetic(device: torch.device, profile: str) -> Iterator[None]:
    """Inference under a profile: `exact` is float32 with TF32 off and fixed algorithms, `fast` is bfloat16."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    exact = profile == "exact"
    if exact:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=not exact):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
