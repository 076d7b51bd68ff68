"""What can go wrong, grouped by what a handler does about it, and the stable reason codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """One stable reason code: what was found and what the reader can do about it."""

    text: str
    hint: str


# Append only: codes are stored in catalogs and read by programs. docs/errors.md lists them all (a test holds it so).
REASONS: dict[str, Reason] = {
    # -- files that cannot be read: quarantine, go on
    "NOT_DICOM": Reason("the file is not readable as DICOM", "remove it, or check how it was exported"),
    "UNKNOWN_FORMAT": Reason("the file is of no known kind", "exclude it with --exclude, or convert it"),
    "TRUNCATED": Reason("fewer bytes than the header promises", "fetch the file again from its source"),
    "DECODE_FAILED": Reason("the compressed pixels could not be decoded", "re-export uncompressed, or check the codec"),
    "DECODE_LIMIT": Reason(
        "decoding exceeded its memory or time limit", "raise ingest.decode_seconds or ingest.decode_bytes"
    ),
    "TOO_LARGE": Reason("the header asks for more memory than allowed", "raise ingest.max_series_bytes if it is real"),
    "BAD_HEADER": Reason("a required attribute is missing or not a legal value", "re-export the series"),
    "NO_PIXELS": Reason("an image object without pixel data", "fetch the file again from its source"),
    "HEADER_LIMIT": Reason("a header deeper, longer or larger than any real one", "do not trust it: export it again"),
    "WRONG_SYNTAX": Reason("the data are not coded as the transfer syntax says", "re-export, or correct (0002,0010)"),
    "UNREADABLE": Reason("the file could not be opened", "check permissions and the disk"),
    "ARCHIVE_NOT_UNPACKED": Reason(
        "a packed file inside a packed one, under a password, or of a kind that is not read (only zip and tar are)",
        "unpack it and ingest the folder",
    ),
    "ARCHIVE_LIMIT": Reason("a zip or tar unpacks to more than is allowed", "unpack it by hand if you trust it"),
    # -- series that cannot be stacked
    "NO_SERIES_UID": Reason("SOPInstanceUID is missing (or, as a flag, SeriesInstanceUID)", "re-export with UIDs"),
    "UID_CONFLICT": Reason("one SOPInstanceUID, different contents", "find out which is right; both are kept out"),
    "MISSING_SLICE": Reason("a gap of at least 1.5 times the median slice spacing", "fetch the missing slices"),
    "IRREGULAR_SPACING": Reason("slices are not evenly spaced within 5 %", "resample outside, or leave it out"),
    "DUPLICATE_POSITION": Reason("slice positions repeat without a time axis", "remove the duplicates"),
    "NO_GEOMETRY": Reason("position, orientation or spacing is missing or not usable", "re-export with geometry"),
    "NON_FINITE": Reason("slope, intercept or voxels are not finite, or the slope is zero", "re-export the series"),
    "MULTIFRAME": Reason(
        "a volume tiled into one frame does not say how many slices it holds", "export it with its private tags"
    ),
    "UNSUPPORTED_MODALITY": Reason("this modality is not read yet", "it stays listed; ingest again after an update"),
    "UNSUPPORTED_PIXELS": Reason("this pixel format is not read yet", "it stays listed; ingest again after an update"),
    "BURNED_IN": Reason(
        "the header says that annotation, maybe a name, is burned into the pixels",
        "leave it out; or ingest.burned_in = 'accept' after a look",
    ),
    "SECONDARY_CAPTURE": Reason(
        "a secondary capture, likely with text", "leave it out; or ingest.secondary_capture = 'accept'"
    ),
    "WORKER_KILLED": Reason(
        "the worker died while it had this series",
        "raise cluster.memory_limit or lower cluster.workers, then run it again",
    ),
    "UNEXPECTED": Reason(
        "an error that voxbook did not foresee", "report it with the run's id (voxbook inspect -w WS)"
    ),
    # -- the state of the workspace
    "SOURCE_GONE": Reason(
        "its files are no longer in the source; the volume stays", "voxbook forget, if it should go too"
    ),
    "NO_MEMORY": Reason("a model that does not fit into memory", "--set train.batch_size= or train.width= smaller"),
    "NO_MODEL": Reason("no model is trained for this group", "voxbook train -w WS --group NAME, then encode again"),
    "NO_TABLES": Reason(
        "codes whose model's tables are not known here", "open them through their workspace, or set VOXBOOK_TABLES"
    ),
    "NOT_FOUND": Reason("nothing there by that name", "voxbook inspect lists what exists"),
    "NOTHING_FOUND": Reason("no image was found", "check the path and --exclude"),
    "FORGOTTEN": Reason("a series whose erasure was ended before it was done", "the next forget or gc goes on with it"),
    "PATIENT_FORGOTTEN": Reason(
        "a series of a patient whose erasure was ended before it was done", "the next forget or gc goes on with it"
    ),
    "LEASED": Reason("another run works on it", "wait for it, or end it; dead runs are taken over"),
    "DAMAGED": Reason(
        "stored bytes differ from their manifest",
        "voxbook repair (codes), ingest again (volumes); docs/how-to/recover.md (models)",
    ),
    "MISSING": Reason(
        "stored files are gone", "voxbook repair (codes), ingest again (volumes); docs/how-to/recover.md (models)"
    ),
    "SCHEMA": Reason("the catalog was written by another version", "use the voxbook that wrote it"),
    "WRONG_KEY": Reason("the pseudonym key is not the one of this workspace", "set VOXBOOK_KEY to the right key"),
    "WRONG_MODEL": Reason(
        "the model's files do not match its id, or the codes name another one",
        "restore models/ from a copy, or train and encode again",
    ),
    "OCCUPIED": Reason("the target exists already", "choose another name, or remove it"),
    "NOT_WRITABLE": Reason("a store could not be written", "check free space and permissions, then run it again"),
    "NETWORK_FS": Reason("SQLite on a network file system loses data", "set database to a PostgreSQL URL"),
    # -- quality
    "BELOW_MIN_PSNR": Reason("PSNR is below gate.min_psnr", "train longer, more levels, or a lower gate"),
    "BELOW_MIN_SSIM": Reason("SSIM is below gate.min_ssim", "train longer, more levels, or a lower gate"),
    "ABOVE_MAX_ERROR": Reason("a voxel is off by more than gate.max_error", "the volume tier holds the exact voxels"),
    "WORSE_MODEL": Reason(
        "the model is worse than the current one on the same series", "train it longer, or promote it with --force"
    ),
    "NOT_MEASURABLE": Reason("a gated figure cannot be measured on this series", "decode it from the volume tier"),
    "NOT_BOUNDABLE": Reason(
        "values that the layer of gate.max_error cannot hold: floats, or more than 16 bits within a slice",
        "the volume tier holds the exact voxels",
    ),
    # -- configuration
    "UNKNOWN_KEY": Reason("no setting has this name", "see docs/configuration.md"),
    "BAD_VALUE": Reason("the value is not legal for this setting", "see docs/configuration.md"),
    "BAD_USAGE": Reason("the command was given something it cannot use", "see voxbook VERB --help"),
    "NO_WORKSPACE": Reason("there is no workspace in this folder", "voxbook init, or voxbook ingest SOURCE -w WS"),
    "SHADOWED": Reason("a file of yours hides one of voxbook's packages", "rename it, or run from another folder"),
    "NOT_STARTED": Reason("a process that was started did not come up", "its log says why"),
    "VERSIONS": Reason("installed packages do not work together", "pip install -c constraints.txt"),
}


class VoxbookError(Exception):
    """Root of all errors; `code` is stable, `hint` says what to do, `context` holds pseudonyms and numbers only."""

    def __init__(self, code: str, message: str = "", *, hint: str = "", **context: Any) -> None:
        reason = REASONS[code]
        self.code = code
        self.message = message or reason.text
        self.hint = hint or reason.hint
        self.context = context
        super().__init__(f"{code}: {self.message}")

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self):  # errors cross process borders, and keywords would be lost
        return _rebuild, (type(self), self.code, self.message, self.hint, self.context)


def _rebuild(kind: type[VoxbookError], code: str, message: str, hint: str, context: dict[str, Any]) -> VoxbookError:
    return kind(code, message, hint=hint, **context)


class InputError(VoxbookError, ValueError):
    """An input that is refused: quarantine it and go on."""


class TransientError(VoxbookError, OSError):
    """Might work when tried again; the only kind that is retried."""


class StoreError(VoxbookError, OSError):
    """A store or the catalog is missing, damaged or not writable: stop."""


class MismatchError(VoxbookError, ValueError):
    """Two things that must belong together do not (key, model, version): stop."""


class QualityError(VoxbookError, ValueError):
    """A series is below its gate: flag it."""


class ConfigError(VoxbookError, ValueError):
    """Usage or configuration: exit code 2, no traceback."""


def describe(error: BaseException) -> str:
    """An error in words without its message: type and the last place in our code, which hold no identifiers."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.split(".")[0] in ("archive", "model", "tasks", "flows"):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"
