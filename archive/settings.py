"""voxbook.toml: every setting, its meaning and its default; unknown keys are errors that name the nearest key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class Section(BaseModel):
    """A frozen table of voxbook.toml that knows no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GateSettings(Section):
    """What a decoded series must reach; nothing is set out of the box: measured, not judged."""

    min_psnr: float | None = Field(None, description="Least PSNR in dB of a decoded series.")
    min_ssim: float | None = Field(None, description="Least mean SSIM of a decoded series, 0 to 1.")
    max_error: float | None = Field(
        None,
        ge=0,
        description="Largest error of any voxel, in the volume's units; where codes miss it, a layer that keeps it "
        "is stored beside them. 0: decoding gives the source bit for bit.",
    )


class SizeSettings(Section):
    """The sizes of a model; what is none comes from the preset."""

    codebook_size: int | None = Field(None, ge=2, le=65535, description="Codes per codebook.")
    width: int | None = Field(None, ge=8, description="Channels of the hidden layers.")
    levels: int | None = Field(None, ge=1, le=16, description="Residual codebooks.")
    downsample: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="Voxels per code along z, y, x."
    )


class GroupSettings(Section):
    """One `[groups.NAME]`: which series belong to it, and what differs for them."""

    match: dict[str, str | float | int] = Field(
        default_factory=dict, description="Attributes (modality, or an allow-listed acquisition key) that select it."
    )
    preset: str | None = Field(None, description="Model preset of this group; none: the one for its modality.")
    gate: GateSettings = Field(default_factory=GateSettings, description="The gate of this group.")
    train: SizeSettings = Field(default_factory=SizeSettings, description="The sizes of this group's model.")


class SlurmSettings(Section):
    """Jobs of a SLURM queue, each with `cores` workers of one thread; for `cluster.address = "slurm"`."""

    queue: str | None = Field(None, description="Partition that jobs go to; none: the site's default.")
    account: str | None = Field(None, description="Account that jobs are charged to.")
    cores: int = Field(4, ge=1, description="Cores of one job, and its worker processes.")
    memory: str = Field("16GiB", description="Memory of one job, as Dask writes it.")
    walltime: str = Field("08:00:00", description="Time limit of one job, as SLURM writes it.")
    jobs: int = Field(1, ge=1, description="Jobs to start.")
    minimum_jobs: int | None = Field(
        None, ge=0, description="As many jobs as there is work for, from this number to `jobs`; none: always `jobs`."
    )
    directives: tuple[str, ...] = Field((), description="More lines for #SBATCH, such as --gres=gpu:1.")
    prologue: tuple[str, ...] = Field((), description="Shell lines before the worker starts, such as module load.")
    interface: str | None = Field(None, description="Network interface of nodes and scheduler, such as ib0.")
    host: str | None = Field(None, description="Address of this machine that nodes reach it by; none: by interface.")
    folder: str = Field(
        "~/.voxbook/slurm", description="Folder that all nodes see: TLS certificates of the run, and logs of its jobs."
    )
    scratch: str | None = Field(None, description="Folder on a node's own disk for its workers.")


class ClusterSettings(Section):
    """Where Dask runs."""

    address: str = Field(
        "local",
        description="local, local-gpu (one worker per GPU), slurm, inline (this process, no Dask), or tcp://HOST:PORT "
        "of a scheduler.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Worker processes of a local cluster; none: one per core that memory and control group allow, and "
        "one per GPU where a stage computes on one.",
    )
    memory_limit: str = Field("auto", description="Memory limit of one local worker, as Dask writes it (4GiB).")
    slurm: SlurmSettings = Field(default_factory=SlurmSettings, description="Jobs of a SLURM queue.")

    @field_validator("address")
    @classmethod
    def _known(cls, address: str) -> str:
        if address in ("local", "local-gpu", "slurm", "inline") or address.startswith(("tcp://", "tls://")):
            return address
        raise ValueError("must be local, local-gpu, slurm, inline, tcp://HOST:PORT or tls://HOST:PORT")


class IngestSettings(Section):
    """What is let in."""

    spacing_tolerance: float = Field(0.05, gt=0, lt=0.5, description="Slice spacing may differ by this share.")
    burned_in: Literal["quarantine", "accept"] = Field(
        "quarantine", description="Images whose header says BurnedInAnnotation YES."
    )
    secondary_capture: Literal["quarantine", "accept"] = Field("quarantine", description="Secondary capture images.")
    max_series_bytes: int = Field(8 * 2**30, gt=0, description="Largest decoded size of one series, in bytes.")
    max_archive_bytes: int = Field(64 * 2**30, gt=0, description="Most bytes that one zip or tar may unpack to.")
    decode_bytes: int = Field(2 * 2**30, gt=0, description="Memory limit of the process that decodes pixels, in bytes.")
    decode_seconds: float = Field(30.0, gt=0, description="Time limit to decode one file, in seconds.")
    batch_bytes: int = Field(256 * 2**20, gt=0, description="Source bytes that make up one batch of series.")


class TrainSettings(SizeSettings):
    """How models are trained; what is none comes from the preset."""

    preset: str | None = Field(None, description="Model preset for every group; none: the one for its modality.")
    max_seconds: float = Field(870.0, gt=0, description="Total time over all groups, in seconds.")
    floor_seconds: float = Field(30.0, ge=0, description="Least time of a group, in seconds, as far as the total goes.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps; whichever of steps and time ends first.")
    epochs: int | None = Field(None, ge=1, description="Passes over the slices; with steps, whichever ends first.")
    batch_size: int | None = Field(None, ge=1, description="Patches per step (and process, under torchrun).")
    accumulate: int | None = Field(None, ge=1, description="Batches whose gradients make one step.")
    patience: int | None = Field(
        None, ge=1, description="Looks at held-out patients without a better one that end training; none: never."
    )
    validate_every: int | None = Field(None, ge=1, description="Steps from one look at held-out patients to the next.")
    balance: tuple[Literal["modality", "site", "class"], ...] | None = Field(
        None, description="Draw series by cells of modality, site (manufacturer) and class (picture folder) first."
    )
    balance_temperature: float | None = Field(
        None, ge=0, le=1, description="Cells of balance are drawn with voxels ** it; 0: all alike."
    )
    temperature: float | None = Field(
        None, gt=0, le=1, description="Series are drawn with voxels ** it: 1 by size, near 0 all alike."
    )
    optimizer: Literal["muon", "adamw", "adam", "sgd"] | None = Field(None, description="muon, adamw, adam or sgd.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; it must suit the optimizer.")
    alpha: float | None = Field(None, gt=0, lt=1, description="alpha in L = alpha * L_rec + (1 - alpha) * L_quant.")
    mse: float | None = Field(None, ge=0, description="Weight of the mean squared error in L_rec.")
    l1: float | None = Field(None, ge=0, description="Weight of the mean absolute error in L_rec.")
    ssim: float | None = Field(None, ge=0, description="Weight of 1 - SSIM in L_rec.")
    stem: Literal["unshuffle", "haar", "strided"] | None = Field(
        None, description="Voxels into cells: space to depth, Haar wavelet, or the article's stride-2 convolutions."
    )
    quantizer: Literal["ema", "vq", "fsq"] | None = Field(
        None, description="Codebooks by moving averages, by gradient (the article's), or rounding without codebooks."
    )
    fsq_levels: tuple[PositiveInt, ...] | None = Field(
        None, description="Steps per dimension of fsq; none: the paper's nearest to codebook_size."
    )
    rate_penalty: float | None = Field(None, ge=0, lt=1, description="How much a code's bits count when it is chosen.")
    normalize: bool | None = Field(None, description="Latents and codes on a sphere: codes are found by direction.")
    gradient: Literal["straight-through", "rotation"] | None = Field(
        None, description="How gradients pass the quantizer."
    )
    attention: bool | None = Field(
        None, description="Self-attention in the decoder: can invent structure, and decodes whole volumes only."
    )
    adversarial: float | None = Field(
        None, ge=0, description="Weight of a patch discriminator's judgement: can invent structure; 0: none."
    )
    adversarial_after: int | None = Field(None, ge=0, description="Steps before the discriminator has a say.")
    code_dim: int | None = Field(None, ge=1, description="Dimensions of a code.")
    intensity: Literal["hu", "hu-companded", "robust", "asinh", "bytes"] | None = Field(
        None, description="Mapping of values into the model; none: by modality (docs/decisions/0011 for HU)."
    )
    level_dropout: float | None = Field(
        None, ge=0, le=1, description="Share of the samples that keep only some levels (quantizer dropout)."
    )
    start: Literal["data", "random"] | None = Field(
        None, description="Where codebooks start: k-means of latents, or random numbers, of which most are never used."
    )
    corrections: int | None = Field(
        None, ge=0, description="Scales in which wavelets of what the decoder leaves over are coded too; 0: none."
    )
    correction_step: float | None = Field(None, gt=0, le=2, description="Step of those, in the model's range of 2.")
    correction_penalty: float | None = Field(None, ge=0, lt=1, description="How much the bits of those count.")
    jitter: float | None = Field(None, ge=0, lt=1, description="Largest change of intensities in half of the patches.")
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(None, description="Voxels z, y, x of a patch.")
    schedule: Literal["cosine", "constant"] | None = Field(None, description="How the learning rate goes on.")
    decay: float | None = Field(None, gt=0, lt=1, description="Of the codebooks' moving averages, a step.")
    average: float | None = Field(None, ge=0, lt=1, description="Of the weights' moving average, a step.")
    seed: int = Field(0, ge=0, description="Seed of weights, sampling and codebooks.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: one per core.")
    holdout: float = Field(0.1, ge=0, le=0.5, description="Share of patients kept out of training to measure on.")
    cache_bytes: int = Field(2 * 2**30, gt=0, description="Memory for decoded slabs of training volumes, in bytes.")
    compile: bool = Field(False, description="torch.compile encoder and decoder; plain where that fails.")
    checkpoint_seconds: float = Field(30.0, gt=0, description="A checkpoint at least this often, in seconds.")


class EncodeSettings(Section):
    """How the archive is encoded."""

    profile: Literal["exact", "fast"] = Field("exact", description="exact: fp32 and repeatable; fast: bf16.")
    levels: int | None = Field(
        None,
        ge=1,
        le=255,
        description="Levels to store, corrections among them, at most those of each group's model; none: all.",
    )
    batch_voxels: int = Field(16 * 2**20, gt=0, description="Voxels that make up one batch of series.")
    batch_series: int = Field(
        128, gt=0, description="Most series in one batch: what bounds memory where they are small."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    memory_bytes: int = Field(
        2**28, ge=2**22, description="Voxels that one worker holds: read ahead, and waiting for their batch, in bytes."
    )
    certify: Literal["auto", "sample", "full"] = Field(
        "auto",
        description="Slices measured for certificates: all, or a seeded sample; auto: all on a GPU, a sample on a CPU. "
        "A gate with max_error measures all.",
    )
    certify_slices: int = Field(
        24, ge=1, description="Most slices of a series in a sample: an eighth of them, 8 at least."
    )


class VerifySettings(Section):
    """How the stores are checked."""

    read_data: bool = Field(False, description="Read every byte and compare its sha256; else only files and sizes.")
    sample: float = Field(1.0, gt=0, le=1, description="Share of the versions to check, the longest unchecked first.")
    max_seconds: float | None = Field(None, gt=0, description="Stop after this time, in seconds; the next run goes on.")


class PromoteSettings(Section):
    """How a model is compared with its group's current one."""

    series: int = Field(
        24, ge=1, description="Series of the group that both are compared on; what lacks codes is encoded first."
    )
    voxels: int = Field(2**31, gt=0, description="Voxels of those series together at most, one series at least.")
    tolerance_db: float = Field(
        0.1, ge=0, description="A mean difference of PSNR up to this, in dB, or within its noise, is none."
    )


class GcSettings(Section):
    """What `gc` leaves of what is superseded."""

    keep: int = Field(0, ge=0, description="Superseded versions of each series that stay, beside the current one.")
    grace_seconds: float = Field(
        3600.0, ge=0, description="Superseded versions stay this long for those who still read them, in seconds."
    )


class PrefectSettings(Section):
    """What runs leave on the Prefect server."""

    pictures: bool = Field(
        True, description="Pictures of a training's slices, which are patient data, in the Prefect UI."
    )


class Settings(Section):
    """Everything in voxbook.toml."""

    database: str | None = Field(
        None, description="SQLAlchemy URL of the catalog; none: catalog.sqlite beside this file."
    )
    linkage: str | None = Field(None, description="SQLAlchemy URL of the linkage; none: linkage.sqlite, mode 0600.")
    sources: dict[str, str] = Field(default_factory=dict, description="Alias = folder of each source.")
    groups: dict[str, GroupSettings] = Field(default_factory=dict, description="Groups beside one per modality.")
    gate: GateSettings = Field(default_factory=GateSettings, description="The gate where a group sets none.")
    cluster: ClusterSettings = Field(
        default_factory=ClusterSettings, description="Where Dask runs; a string is its address."
    )
    ingest: IngestSettings = Field(default_factory=IngestSettings, description="What is let in.")
    train: TrainSettings = Field(default_factory=TrainSettings, description="How models are trained.")
    encode: EncodeSettings = Field(default_factory=EncodeSettings, description="How the archive is encoded.")
    verify: VerifySettings = Field(default_factory=VerifySettings, description="How the stores are checked.")
    promote: PromoteSettings = Field(
        default_factory=PromoteSettings, description="How a model is compared with its group's current one."
    )
    gc: GcSettings = Field(default_factory=GcSettings, description="What `gc` leaves of what is superseded.")
    prefect: PrefectSettings = Field(
        default_factory=PrefectSettings, description="What runs leave on the Prefect server."
    )

    @field_validator("cluster", mode="before")
    @classmethod
    def _address_alone(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    def gate_of(self, group: str) -> GateSettings:
        """The gate of a group: its own values where set, else the general ones."""
        own = self.groups[group].gate if group in self.groups else GateSettings()
        return GateSettings(**{**self.gate.model_dump(), **own.model_dump(exclude_none=True)})

    def train_of(self, group: str) -> TrainSettings:
        """How a group's model is trained: its own sizes where set, else the general ones."""
        own = self.groups[group].train if group in self.groups else SizeSettings()
        return self.train.model_copy(update=own.model_dump(exclude_none=True))
