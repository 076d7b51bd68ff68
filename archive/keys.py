"""Pseudonyms: keyed hashes that stand for identifiers everywhere outside the linkage."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from archive.errors import ConfigError

ENVIRONMENT = "VOXBOOK_KEY"


class Pseudonyms:
    """HMAC-SHA256 under one secret key; the same identifier always gets the same pseudonym."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ConfigError(
                "BAD_VALUE", "the pseudonym key is shorter than 16 bytes", hint=f"set {ENVIRONMENT} longer"
            )
        self._key = key

    @classmethod
    def load(cls) -> Pseudonyms:
        """The key in VOXBOOK_KEY, else the 0600 file under ~/.config/voxbook, made on first use."""
        text = os.environ.get(ENVIRONMENT)
        return cls(text.encode() if text else _key_file(key_path()))

    @property
    def fingerprint(self) -> str:
        """16 hex that tell keys apart without giving them away."""
        return self.of("fingerprint")[:16]

    def of(self, domain: str, *parts: str) -> str:
        """32 hex for the parts, by value; each part's length goes in, so no two lists collide by joining."""
        message = domain.encode() + b"".join(b"\0%d\0" % len(raw) + raw for raw in (part.encode() for part in parts))
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:32]

    def series(self, *parts: str) -> str:
        """SeriesInstanceUID (or source alias and path) and the split values."""
        return self.of("series", *parts)

    def patient(self, *parts: str) -> str:
        """PatientID (0010,0020) and IssuerOfPatientID (0010,0021)."""
        return self.of("patient", *parts)

    def file(self, alias: str, path: str) -> str:
        """One file of a source that belongs to no series."""
        return self.of("file", alias, path)

    def source(self, path: str) -> str:
        """The alias of a source given by its path alone."""
        return "s" + self.of("source", path)[:8]


def key_path() -> Path:
    """Where the key lies when the environment holds none."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return Path(base) / "voxbook" / "key"


def _key_file(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".key-{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # two first runs at once: the first link wins, both read it
            os.link(draft, path)
        draft.unlink()
    if path.stat().st_mode & 0o077:
        raise ConfigError("BAD_VALUE", "the pseudonym key can be read by others", hint=f"chmod 600 {path}")
    return path.read_text().strip().encode()
