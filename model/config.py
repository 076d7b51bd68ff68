"""What a model is made of and how it learns: one frozen config, and the presets to start from."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from archive.errors import ConfigError
from archive.settings import TrainSettings

Triple = tuple[int, int, int]
PEAK_RATES = {"muon": 0.02, "adamw": 1.5e-3, "adam": 1e-3, "sgd": 0.05}
FSQ_STEPS = ((8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5))


class ModelConfig(BaseModel):
    """Everything that decides a model's weights beside the data; saved in the bundle and part of the model id.

    Sizes are z, y, x. For dims = 2 the z entries are 1, and each slice is coded by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = Field(description="Name of the preset it came from.")
    dims: Literal[2, 3] = Field(2, description="2: slices; 3: volumes.")
    channels: int = Field(1, ge=1, le=4, description="Colour channels of the input.")
    intensity: Literal["hu", "hu-companded", "robust", "asinh", "bytes"] = Field(
        "robust", description="Mapping into the model."
    )
    stem: Literal["unshuffle", "haar", "strided"] = Field(
        "unshuffle", description="Voxels into cells: space to depth, Haar wavelet, or stride-2 convolutions with ReLU."
    )
    unshuffle: Triple = Field((1, 4, 4), description="What the stem folds, before the first convolution.")
    stride: Triple = Field((1, 2, 2), description="The one strided convolution, to the code grid.")
    fine_width: int = Field(48, ge=4, description="Channels before the stride, in the encoder.")
    width: int = Field(128, ge=8, description="Channels on the code grid.")
    decoder_width: int = Field(64, ge=4, description="Channels after the stride, in the decoder.")
    fine_blocks: int = Field(1, ge=0, description="Residual blocks before the stride, in the encoder.")
    blocks: int = Field(3, ge=0, description="Residual blocks on the code grid, in the encoder.")
    deep_blocks: int | None = Field(
        None, ge=0, description="Residual blocks on the code grid, in the decoder; none: as many as in the encoder."
    )
    decoder_blocks: int = Field(3, ge=0, description="Residual blocks after the stride, in the decoder.")
    attention: bool = Field(
        False, description="Self-attention in the decoder: can invent structure, and decodes whole volumes only."
    )
    quantizer: Literal["ema", "vq", "fsq"] = Field(
        "ema", description="Codebooks by moving averages, by gradient (the article's), or rounding without codebooks."
    )
    fsq_levels: tuple[int, ...] = Field(
        (8, 5, 5, 5), description="Steps per dimension of fsq; codebook_size is their product, code_dim their number."
    )
    normalize: bool = Field(False, description="Latents and codes on a sphere: codes are found by direction.")
    gradient: Literal["straight-through", "rotation"] = Field(
        "straight-through", description="How gradients pass the quantizer."
    )
    start: Literal["data", "random"] = Field(
        "data", description="Codebooks from latents by k-means, or from random numbers, which collapses."
    )
    revive: bool = Field(
        True,
        description="Codes that hardly occur start again from latents; without a price, rare ones are favoured.",
    )
    rate_penalty: float = Field(
        0.0, ge=0, lt=1, description="How much the bits of a code count beside its distance; 0: not at all."
    )
    level_dropout: float = Field(
        0.3, ge=0, le=1, description="Share of training samples that lose levels, so that a prefix of levels decodes."
    )
    codebook_size: int = Field(1024, ge=2, le=65535, description="Codes per codebook; 65535 is the fill value.")
    code_dim: int = Field(16, ge=1, le=256, description="Dimensions of a code.")
    levels: int = Field(1, ge=1, le=16, description="Residual codebooks, coarse first.")
    corrections: int = Field(
        0, ge=0, description="Scales in which wavelets of what the decoder leaves over are coded too; 0: none."
    )
    correction_step: float = Field(0.15, gt=0, le=2, description="Step of those, in the model's range of 2.")
    correction_penalty: float = Field(
        0.12, ge=0, lt=1, description="How much the bits of those count, in squared steps."
    )
    decay: float = Field(0.98, gt=0, lt=1, description="Decay of the codebooks' moving averages.")
    alpha: float = Field(0.8, gt=0, lt=1, description="L = alpha * L_rec + (1 - alpha) * L_quant.")
    mse: float = Field(20.0, ge=0, description="Weight of the mean squared error in L_rec.")
    l1: float = Field(1.0, ge=0, description="Weight of the mean absolute error in L_rec.")
    ssim: float = Field(0.0, ge=0, description="Weight of 1 - SSIM in L_rec.")
    adversarial: float = Field(
        0.0, ge=0, description="Weight of a patch discriminator's judgement: can invent structure; 0: none."
    )
    adversarial_after: int = Field(1000, ge=0, description="Steps before the discriminator has a say.")
    batch_size: int = Field(16, ge=1, description="Patches per step.")
    patch: Triple = Field((1, 128, 128), description="Voxels of a training patch.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps; none, and no epochs: the time given decides.")
    epochs: int | None = Field(None, ge=1, description="Training in passes: as many patches as there are slices each.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one step.")
    validate_every: int = Field(200, ge=1, description="Steps from one look at held-out patients to the next.")
    patience: int | None = Field(None, ge=1, description="Looks without a better one that end training; none: never.")
    optimizer: Literal["muon", "adamw", "adam", "sgd"] = Field(
        "muon", description="Muon learns in a third of AdamW's steps."
    )
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; none: the optimizer's own.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay.")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear learning rate warm-up.")
    quantize_after: int = Field(0, ge=0, description="Steps as a plain autoencoder before the codebooks start.")
    average: float = Field(0.998, ge=0, lt=1, description="Decay of the averaged weights that are kept.")
    temperature: float = Field(0.5, gt=0, le=1, description="Series are drawn with voxels ** temperature.")
    balance: tuple[Literal["modality", "site", "class"], ...] = Field(
        (), description="Series are drawn by cells of these attributes first, then within a cell."
    )
    balance_temperature: float = Field(0.0, ge=0, le=1, description="Cells are drawn with voxels ** it; 0: all alike.")
    jitter: float = Field(0.4, ge=0, lt=1, description="Stretch of intensities in half of the patches, as a share.")
    seed: int = Field(0, ge=0, description="Seed of weights, sampling and codebooks.")

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.dims == 2 and (self.downsample[0] != 1 or self.patch[0] != 1):
            raise ValueError("a model of dims 2 has z = 1 in unshuffle, stride and patch")
        if any(size % factor for size, factor in zip(self.patch, self.downsample, strict=True)):
            raise ValueError(f"patch must be a multiple of the downsampling {self.downsample}")
        if self.stem != "unshuffle":
            folds = (*self.unshuffle, *self.stride) if self.stem == "strided" else self.unshuffle
            if any(factor & (factor - 1) for factor in folds):
                raise ValueError(f"stem {self.stem} halves: unshuffle (and stride) must be powers of two")
        if self.stem == "strided" and max(self.unshuffle) < 2:
            raise ValueError("stem strided needs an unshuffle of at least 2 along one axis")
        if self.quantizer == "fsq":
            self._fits_fsq()
        if self.corrections:
            self._fits_corrections()
        return self

    def _fits_fsq(self) -> None:
        if min(self.fsq_levels, default=0) < 3:
            raise ValueError("fsq_levels are at least 3 steps each")
        if (self.codebook_size, self.code_dim) != (math.prod(self.fsq_levels), len(self.fsq_levels)):
            raise ValueError("with fsq, codebook_size is the product of fsq_levels and code_dim their number")
        if self.gradient == "rotation" or self.normalize:
            raise ValueError("fsq has no codes to turn to or to normalize: gradient and normalize are for codebooks")
        if self.rate_penalty:
            raise ValueError("fsq rounds, it does not choose by price: rate_penalty is for codebooks")

    def _fits_corrections(self) -> None:
        cell = self.downsample
        if self.dims != 2 or self.channels != 1 or self.attention:
            raise ValueError("corrections are for grey slices (dims = 2, one channel) and decoders without attention")
        if cell[1] != cell[2] or cell[1] not in (2, 4, 8) or cell[1] < 2**self.corrections:
            # Beyond 8 the reach of a code, 13 cells, leaves little of a window that is not border.
            raise ValueError("corrections need square cells of 2, 4 or 8 voxels, and at least 2 ** corrections")
        if self.codebook_size < 27:
            raise ValueError("corrections need a codebook_size of at least 27: three steps in three directions")

    @property
    def code_levels(self) -> int:
        """Levels of the codes: the codebooks', and the corrections' (one for the coarse scale, then one for each place)."""
        return self.stops[-1]

    @property
    def stops(self) -> tuple[int, ...]:
        """Numbers of levels worth stopping at: of each codebook, then where a scale of corrections is complete."""
        after = correction_stops(self.corrections) if self.corrections else ()
        return (*range(1, self.levels + 1), *(self.levels + count for count in after))

    @property
    def folds(self) -> tuple[int, ...]:
        """Which levels are places of one finer grid (archive.folds): those of a scale of corrections."""
        scales = (2 ** (scale - 1) for scale in range(1, self.corrections + 1))
        return (1,) * self.levels + ((1, *scales) if self.corrections else ())

    @property
    def downsample(self) -> Triple:
        """Voxels per code along z, y, x."""
        z, y, x = (u * s for u, s in zip(self.unshuffle, self.stride, strict=True))
        return z, y, x

    @property
    def peak_rate(self) -> float:
        """The peak learning rate, whoever names it."""
        return self.learning_rate or PEAK_RATES[self.optimizer]

    def axes(self, sizes: Triple) -> tuple[int, ...]:
        """The last `dims` of three sizes: what a layer of this model takes."""
        return tuple(sizes[3 - self.dims :])


# An encoder of two blocks stays under 20 kFLOP per voxel; the decoder, which runs on demand, is deeper.
_LEAN: dict[str, Any] = {"blocks": 2, "deep_blocks": 3}
_THREE_D: dict[str, Any] = {"dims": 3, "unshuffle": (2, 4, 4), "stride": (2, 2, 2), "patch": (16, 64, 64)}
_SMALL: dict[str, Any] = {"fine_width": 32, "width": 64, "decoder_width": 32, "blocks": 2, "decoder_blocks": 2}
_FLAT: dict[str, Any] = {"unshuffle": (1, 2, 2), "patch": (8, 32, 32), "fine_blocks": 0}
_TINY: dict[str, Any] = {
    **{"fine_width": 8, "width": 16, "decoder_width": 8, "blocks": 1, "decoder_blocks": 1},
    **{"codebook_size": 64, "code_dim": 8, "batch_size": 4, "patch": (1, 32, 32), "quantize_after": 5},
}

_ARTICLE: dict[str, Any] = {
    **{"intensity": "bytes", "channels": 3, "patch": (1, 32, 32), "temperature": 1.0, "jitter": 0.0},
    **{"stem": "strided", "unshuffle": (1, 2, 2), "stride": (1, 2, 2), "fine_width": 64, "decoder_width": 64},
    **{"width": 8, "fine_blocks": 0, "blocks": 0, "decoder_blocks": 0},
    **{"quantizer": "vq", "codebook_size": 64, "code_dim": 8, "levels": 1},
    **{"alpha": 0.5, "mse": 1.0, "l1": 0.0, "ssim": 0.0},
    **{"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0},
    **{"batch_size": 64, "epochs": 10, "average": 0.0},
}

# Several levels lag when they start on raw latents (docs/log.md).
_LEVELS: dict[str, Any] = {"levels": 2, "quantize_after": 100, "rate_penalty": 0.05}

PRESETS: dict[str, dict[str, Any]] = {
    # 11 bits per 8 x 8 cell, 0.172 per voxel, of which the rate penalty leaves half to an entropy coder.
    "ct-2d": {"intensity": "hu-companded", "ssim": 0.1, **_LEAN, "codebook_size": 2048, "rate_penalty": 0.1},
    # The same with what its decoder leaves over: twice the bytes on disk, 3 dB more, five times the work to encode.
    "ct-2d-fine": {
        "intensity": "hu-companded",
        "ssim": 0.1,
        **_LEAN,
        "codebook_size": 2048,
        "rate_penalty": 0.1,
        "corrections": 3,
    },
    # A 4 x 8 x 8 cell with two codes: 0.078 bits per voxel.
    "ct-3d": {"intensity": "hu-companded", **_THREE_D, **_LEVELS},
    "mr-2d": {**_LEAN, **_LEVELS},
    "mr-3d": {**_THREE_D, "unshuffle": (2, 2, 2), "fine_blocks": 0, "width": 88, "blocks": 2, **_LEVELS},
    # PET matrices are small and smooth: a finer grid, few channels.
    "pet-2d": {"intensity": "asinh", **_SMALL, "unshuffle": (1, 2, 2), "patch": (1, 64, 64), "codebook_size": 512},
    # Short along z, where PET and SPECT are coarse: 2 x 4 x 4 cells.
    "pet-3d": {"intensity": "asinh", **_THREE_D, **_SMALL, **_FLAT, "quantize_after": 100},
    "nm-3d": {"intensity": "asinh", **_THREE_D, **_SMALL, **_FLAT, **_LEVELS},
    "us-2d": {"intensity": "bytes", **_LEAN, **_LEVELS},
    "xray-2d": {**_LEAN, **_LEVELS},
    "nifti-2d": {"patch": (1, 64, 64), **_LEAN, **_LEVELS},
    "picture-2d": {"intensity": "bytes", "patch": (1, 64, 64), **_LEAN, **_LEVELS},
    "rgb-2d": {"intensity": "bytes", "channels": 3, "patch": (1, 64, 64), **_LEAN, **_LEVELS, "levels": 3},
    # The seed article's example, as it must have been meant.
    "article": _ARTICLE,
    "tiny": _TINY,
    "tiny-3d": {**_TINY, "dims": 3, "unshuffle": (2, 2, 2), "stride": (2, 2, 2), "patch": (8, 16, 16)},
}

_BY_MODALITY = {"CT": "ct-2d", "MR": "mr-2d", "PT": "pet-2d", "NM": "pet-2d", "NIFTI": "nifti-2d", "US": "us-2d"}
_BY_MODALITY |= dict.fromkeys(("CR", "DX", "MG", "XA", "RF", "IO", "PX"), "xray-2d")
# What a setting of voxbook.toml is called in the config.
_OVERRIDES: tuple[str, ...] = ("steps", "batch_size", "optimizer", "learning_rate", "alpha")
_OVERRIDES += ("epochs", "accumulate", "patience", "validate_every", "temperature", "balance", "balance_temperature")
_OVERRIDES += ("stem", "quantizer", "fsq_levels", "normalize", "gradient", "attention")
_OVERRIDES += ("adversarial", "adversarial_after", "mse", "l1", "ssim", "rate_penalty")
_OVERRIDES += ("intensity", "level_dropout", "start", "jitter", "patch", "schedule", "decay", "average")
_OVERRIDES += ("corrections", "correction_step", "correction_penalty")
_OVERRIDES += ("codebook_size", "code_dim", "levels", "width", "seed")


def correction_stops(scales: int) -> tuple[int, ...]:
    """Levels of corrections after which the coarse picture and each scale are complete: 1, 2, 6, 22, …"""
    return tuple(1 + (4**scale - 1) // 3 for scale in range(scales + 1))


def preset_for(modality: str, channels: int = 1) -> str:
    """The preset of a modality: DICOM Modality (0008,0060), or NIFTI, or PICTURE."""
    return "rgb-2d" if channels == 3 else _BY_MODALITY.get(modality, "picture-2d")


def resolve(
    preset: str, settings: TrainSettings | None = None, *, channels: int | None = None, intensity: str | None = None
) -> ModelConfig:
    """A preset with the overrides of `[train]`; raises ConfigError BAD_VALUE for an unknown preset or a bad value.

    channels, intensity: those of the group, which go before the preset's: a preset named in voxbook.toml may be used
    for any modality, and `tiny` for CT needs the mapping of CT.
    """
    if preset not in PRESETS:
        raise ConfigError("BAD_VALUE", f"no preset {preset!r}", hint=f"one of {', '.join(PRESETS)}")
    given = {"channels": channels, "intensity": intensity}
    values: dict[str, Any] = {"preset": preset, **PRESETS[preset]}
    values |= {key: value for key, value in given.items() if value is not None}
    if settings is not None:
        if settings.optimizer not in (None, values.get("optimizer")):
            values.pop("learning_rate", None)  # the preset's suits its own optimizer
        values |= {key: getattr(settings, key) for key in _OVERRIDES if getattr(settings, key) is not None}
        if settings.width is not None:
            values |= {"fine_width": max(4, settings.width // 2), "decoder_width": max(4, settings.width // 2)}
        if settings.downsample is not None:
            values |= folded(values.get("stride", (1, 2, 2)), settings.downsample)
    if values.get("quantizer") == "fsq":
        values |= _scalar(values, settings)
    elif settings is not None and settings.fsq_levels is not None:
        raise ConfigError("BAD_VALUE", "fsq_levels: the quantizer is not fsq", hint='train.quantizer = "fsq"')
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "model"
        raise ConfigError("BAD_VALUE", f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def _scalar(values: dict[str, Any], settings: TrainSettings | None) -> dict[str, Any]:
    """Steps per dimension for fsq: those given, else the paper's nearest to the codebook size; and what they make.

    A preset's price and width of codes are for codebooks and give way; those that a person set are refused.
    """
    steps = tuple(values.get("fsq_levels") or fsq_steps(values.get("codebook_size", 1024)))
    for key, useless in (("rate_penalty", 0.0), ("code_dim", len(steps))):
        given = getattr(settings, key, None)
        if given is not None and given != useless:
            raise ConfigError("BAD_VALUE", f"{key}: fsq has none to set", hint=f"leave train.{key} out")
    return {"fsq_levels": steps, "codebook_size": math.prod(steps), "code_dim": len(steps), "rate_penalty": 0.0}


def fsq_steps(codebook_size: int) -> tuple[int, ...]:
    """The steps per dimension of Mentzer 2023 (2309.15505, table 1) whose product is nearest, as a ratio."""
    return min(FSQ_STEPS, key=lambda steps: abs(math.log(math.prod(steps) / codebook_size)))


def folded(stride: Triple, downsample: Triple) -> dict[str, Triple]:
    """A downsampling as the preset's stride, where it divides, and space to depth for the rest."""
    kept = [step if size % step == 0 else 1 for step, size in zip(stride, downsample, strict=True)]
    rest = [size // step for step, size in zip(kept, downsample, strict=True)]
    return {"stride": (kept[0], kept[1], kept[2]), "unshuffle": (rest[0], rest[1], rest[2])}


def intensity_for(modality: str, channels: int = 1, units: str = "a.u.") -> str:
    """The mapping that suits a modality: hu-companded, robust, asinh or bytes (which is robust beyond 8 bits)."""
    if units == "HU":
        return "hu-companded"
    if channels == 3 or modality in ("PICTURE", "US", "OT", "SC"):
        return "bytes"
    return "asinh" if modality in ("PT", "NM") else "robust"
