"""What a model is made of and how it learns: one frozen config, and the presets to start from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from archive.errors import ConfigError
from archive.settings import TrainSettings

Triple = tuple[int, int, int]
PEAK_RATES = {"muon": 0.02, "adamw": 1.5e-3, "sgd": 0.05}


class ModelConfig(BaseModel):
    """Everything that decides a model's weights beside the data; saved in the bundle and part of the model id.

    Sizes are z, y, x. For dims = 2 the z entries are 1, and each slice is coded by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = Field(description="Name of the preset it came from.")
    dims: Literal[2, 3] = Field(2, description="2: slices; 3: volumes.")
    channels: int = Field(1, ge=1, le=4, description="Colour channels of the input.")
    intensity: Literal["hu", "robust", "asinh", "bytes"] = Field("robust", description="Mapping into the model.")
    unshuffle: Triple = Field((1, 4, 4), description="Space to depth before the first convolution.")
    stride: Triple = Field((1, 2, 2), description="The one strided convolution, to the code grid.")
    fine_width: int = Field(48, ge=4, description="Channels before the stride, in the encoder.")
    width: int = Field(128, ge=8, description="Channels on the code grid.")
    decoder_width: int = Field(64, ge=4, description="Channels after the stride, in the decoder.")
    fine_blocks: int = Field(1, ge=0, description="Residual blocks before the stride, in the encoder.")
    blocks: int = Field(3, ge=1, description="Residual blocks on the code grid, in encoder and decoder each.")
    decoder_blocks: int = Field(3, ge=0, description="Residual blocks after the stride, in the decoder.")
    codebook_size: int = Field(1024, ge=2, le=65535, description="Codes per codebook; 65535 is the fill value.")
    code_dim: int = Field(16, ge=1, le=256, description="Dimensions of a code.")
    levels: int = Field(1, ge=1, le=16, description="Residual codebooks, coarse first.")
    decay: float = Field(0.98, gt=0, lt=1, description="Decay of the codebooks' moving averages.")
    alpha: float = Field(0.8, gt=0, lt=1, description="L = alpha * L_rec + (1 - alpha) * L_quant.")
    mse: float = Field(20.0, ge=0, description="Weight of the mean squared error in L_rec.")
    l1: float = Field(1.0, ge=0, description="Weight of the mean absolute error in L_rec.")
    ssim: float = Field(0.0, ge=0, description="Weight of 1 - SSIM in L_rec.")
    batch_size: int = Field(16, ge=1, description="Patches per step.")
    patch: Triple = Field((1, 128, 128), description="Voxels of a training patch.")
    steps: int = Field(20_000, ge=1, description="Steps at most; the time given usually ends first.")
    optimizer: Literal["muon", "adamw", "sgd"] = Field("muon", description="Muon learns in a third of AdamW's steps.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; none: the optimizer's own.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay.")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear learning rate warm-up.")
    quantize_after: int = Field(0, ge=0, description="Steps as a plain autoencoder before the codebooks start.")
    average: float = Field(0.998, ge=0, lt=1, description="Decay of the averaged weights that are kept.")
    temperature: float = Field(0.5, gt=0, le=1, description="Series are drawn with voxels ** temperature.")
    jitter: float = Field(0.4, ge=0, lt=1, description="Stretch of intensities in half of the patches, as a share.")
    seed: int = Field(0, ge=0, description="Seed of weights, sampling and codebooks.")

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.dims == 2 and (self.downsample[0] != 1 or self.patch[0] != 1):
            raise ValueError("a model of dims 2 has z = 1 in unshuffle, stride and patch")
        if any(size % factor for size, factor in zip(self.patch, self.downsample, strict=True)):
            raise ValueError(f"patch must be a multiple of the downsampling {self.downsample}")
        return self

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


_THREE_D: dict[str, Any] = {"dims": 3, "unshuffle": (2, 4, 4), "stride": (2, 2, 2), "patch": (16, 64, 64)}
_SMALL: dict[str, Any] = {"fine_width": 32, "width": 64, "decoder_width": 32, "blocks": 2, "decoder_blocks": 2}
_FLAT: dict[str, Any] = {"unshuffle": (1, 2, 2), "patch": (8, 32, 32)}
_TINY: dict[str, Any] = {
    **{"fine_width": 8, "width": 16, "decoder_width": 8, "blocks": 1, "decoder_blocks": 1},
    **{"codebook_size": 64, "code_dim": 8, "batch_size": 4, "patch": (1, 32, 32), "quantize_after": 5},
}

# Several levels lag when they start on raw latents (docs/log.md).
_GENTLE: dict[str, Any] = {"quantize_after": 100}

PRESETS: dict[str, dict[str, Any]] = {
    # The CT's bits: 10 per 8 x 8 cell, 0.156 per voxel.
    "ct-2d": {"intensity": "hu", "ssim": 0.1},
    # A 4 x 8 x 8 cell with two codes: 0.078 bits per voxel.
    "ct-3d": {"intensity": "hu", **_THREE_D, "levels": 2, **_GENTLE},
    "mr-2d": {"levels": 2, **_GENTLE},
    "mr-3d": {**_THREE_D, "unshuffle": (2, 2, 2), "levels": 2, **_GENTLE},
    # PET matrices are small and smooth: a finer grid, few channels.
    "pet-2d": {"intensity": "asinh", **_SMALL, "unshuffle": (1, 2, 2), "patch": (1, 64, 64), "codebook_size": 512},
    # Short along z, where PET and SPECT are coarse: 2 x 4 x 4 cells.
    "pet-3d": {"intensity": "asinh", **_THREE_D, **_SMALL, **_FLAT, **_GENTLE},
    "nm-3d": {"intensity": "asinh", **_THREE_D, **_SMALL, **_FLAT, "levels": 2, **_GENTLE},
    "us-2d": {"intensity": "bytes", "levels": 2, **_GENTLE},
    "xray-2d": {"levels": 2, **_GENTLE},
    "nifti-2d": {"levels": 2, "patch": (1, 64, 64), **_GENTLE},
    "picture-2d": {"intensity": "bytes", "levels": 2, "patch": (1, 64, 64), **_GENTLE},
    "rgb-2d": {"intensity": "bytes", "levels": 3, "channels": 3, "patch": (1, 64, 64), **_GENTLE},
    "tiny": _TINY,
    "tiny-3d": {**_TINY, "dims": 3, "unshuffle": (2, 2, 2), "stride": (2, 2, 2), "patch": (8, 16, 16)},
}

_BY_MODALITY = {"CT": "ct-2d", "MR": "mr-2d", "PT": "pet-2d", "NM": "pet-2d", "NIFTI": "nifti-2d", "US": "us-2d"}
_BY_MODALITY |= dict.fromkeys(("CR", "DX", "MG", "XA", "RF", "IO", "PX"), "xray-2d")
# What a setting of voxbook.toml is called in the config.
_OVERRIDES: tuple[str, ...] = ("steps", "batch_size", "optimizer", "learning_rate", "alpha")
_OVERRIDES += ("codebook_size", "code_dim", "levels", "width", "seed")


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
        values |= {key: getattr(settings, key) for key in _OVERRIDES if getattr(settings, key) is not None}
        if settings.width is not None:
            values |= {"fine_width": max(4, settings.width // 2), "decoder_width": max(4, settings.width // 2)}
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "model"
        raise ConfigError("BAD_VALUE", f"{where}: {first['msg']}") from None


def intensity_for(modality: str, channels: int = 1, units: str = "a.u.") -> str:
    """The mapping into the model that suits a modality: hu, robust, asinh or bytes (which is robust beyond 8 bits)."""
    if units == "HU":
        return "hu"
    if channels == 3 or modality in ("PICTURE", "US", "OT", "SC"):
        return "bytes"
    return "asinh" if modality in ("PT", "NM") else "robust"
