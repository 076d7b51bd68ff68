"""One archive's folder: its settings, catalog, linkage, stores, models and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from archive.errors import ConfigError, StoreError
from archive.keys import Pseudonyms
from archive.settings import Settings
from archive.settings_file import FILENAME, load

if TYPE_CHECKING:  # SQLAlchemy takes a fifth of a second to import, and `inspect` does without it
    from sqlalchemy import URL

    from archive.catalog import Catalog
    from archive.catalog_schema import SeriesRow
    from archive.codes import StoredCodes
    from archive.linkage import Linkage
    from archive.volumes import StoredVolume

Stored = TypeVar("Stored")
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # without these two nothing can be decoded


class Workspace:
    """Paths and open stores of one archive; `Workspace.open` makes one."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self.volumes = root / "volumes.zarr"
        self.codes = root / "codes.zarr"
        self.models = root / "models"
        self.reports = root / "reports"
        self.exports = root / "exports"
        self.training = root / "training"

    def __repr__(self) -> str:
        return "Workspace()"  # a folder's name may be a patient's

    @classmethod
    def open(cls, root: Path | str, overrides: Iterable[str] = (), create: bool = False) -> Workspace:
        """The workspace in a folder; create makes the folder, mode 0700.

        Raises ConfigError NO_WORKSPACE where neither voxbook.toml nor a catalog is there, and what settings raise.
        """
        path = Path(root).expanduser().absolute()
        if create:
            if path.exists() and not path.is_dir():
                raise ConfigError("BAD_USAGE", "the workspace must be a folder")
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif not (path / FILENAME).is_file() and not (path / "catalog.sqlite").is_file():
            raise ConfigError("NO_WORKSPACE")
        return cls(path, load(path, overrides))

    def has_model(self, model: str) -> bool:
        """Whether a model's weights and config are there and not empty; `model.bundle.check` reads them."""
        files = (self.models / model / name for name in (WEIGHTS, CONFIG))
        return all(path.is_file() and path.stat().st_size > 0 for path in files)

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog, held to the pseudonym key. Raises MismatchError WRONG_KEY and what opening raises."""
        from archive.catalog import Catalog

        catalog = Catalog(self.settings.database or _sqlite(self.root / "catalog.sqlite"))
        catalog.bind_key(self.pseudonyms.fingerprint)
        return catalog

    @cached_property
    def linkage(self) -> Linkage:
        """The linkage of pseudonyms and originals."""
        from archive.linkage import Linkage

        return Linkage(self.settings.linkage or _sqlite(self.root / "linkage.sqlite"))

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """Under the key of this user or of VOXBOOK_KEY."""
        return Pseudonyms.load()

    def register_source(self, path: Path | str, alias: str | None = None, exclude: Iterable[str] | None = None) -> str:
        """Give a source folder or file an alias, its pseudonym by default; path and globs stay in the linkage."""
        place = str(self.place_of(path))
        name = alias or self.alias_of(path)
        self.linkage.register(name, place, exclude)  # the linkage first: an alias in the catalog can always be led back
        self.catalog.register_source(name, "folder" if Path(place).is_dir() else "file")
        return name

    def place_of(self, path: Path | str) -> Path:
        """A source's one absolute path, however it was written."""
        return Path(path).expanduser().resolve()

    def alias_of(self, path: Path | str) -> str:
        """The alias in [sources] of that folder (relative ones start at the workspace), else its pseudonym."""
        place = self.place_of(path)
        named = {
            (self.root / Path(folder).expanduser()).resolve(): alias for alias, folder in self.settings.sources.items()
        }
        return named.get(place) or self.pseudonyms.source(str(place))

    def close(self) -> None:
        """Close what is open; the workspace opens it again when asked."""
        for name in ("catalog", "linkage"):
            opened = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()


def _sqlite(path: Path) -> URL:
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path))  # as text, a ? or # in a folder's name would end the path


class Current(Mapping[str, Stored], Generic[Stored]):
    """The versions of one tier by series that were current when it was opened; nothing is read before it is asked for.

    What `gc` has removed since then gives way to what is current now.
    """

    def __init__(
        self,
        versions: dict[str, str],
        opened: Callable[[Path], Stored],
        root: Path,
        now: Callable[[str], str | None] | None = None,
    ) -> None:
        self._versions = versions
        self._opened = opened
        self._root = root
        self._now = now

    def __getitem__(self, series: str) -> Stored:
        folder = self._root / series / self._versions[series]
        if not folder.is_dir() and self._now is not None:
            version = self._now(series)
            if version is None:
                raise StoreError("MISSING", "the series is no longer in the archive", series=series)
            self._versions[series] = version
            folder = self._root / series / version
        if not folder.is_dir():
            raise StoreError("MISSING", "the catalog names a version that is not in the store", series=series)
        return self._opened(folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)


def _version_now(series: str, root: Path, settings: Settings, tier: str) -> str | None:
    """A series' current version of a tier, asked of the catalog anew; a function, so that Current can be pickled."""
    home = Workspace(root, settings)
    try:
        row = home.catalog.one(series)
    except StoreError as error:
        if error.code != "NOT_FOUND":
            raise
        return None
    finally:
        home.close()
    return row.volume_version if tier == "volume" else row.codes_version


def _rows_of(workspace: Workspace | Path | str) -> tuple[Workspace, list[SeriesRow]]:
    """A workspace and the rows of its series; a catalog that is opened for that is closed again.

    Who opens a path in a loop would else run out of file descriptors.
    """
    if isinstance(workspace, Workspace):
        return workspace, workspace.catalog.series()
    found = Workspace.open(workspace)
    try:
        return found, found.catalog.series()
    finally:
        found.close()


def open_volumes(workspace: Workspace | Path | str) -> Current[StoredVolume]:
    """Current volumes by series. Raises StoreError MISSING when one is asked for that is gone."""
    from archive.volumes import StoredVolume  # zarr takes half a second to import

    found, rows = _rows_of(workspace)
    versions = {row.series: row.volume_version for row in rows}
    now = partial(_version_now, root=found.root, settings=found.settings, tier="volume")
    return Current(versions, StoredVolume, found.volumes, now)


def open_codes(workspace: Workspace | Path | str) -> Current[StoredCodes]:
    """Current codes by series, stale and below-gate ones too (the catalog says which)."""
    from archive.codes import StoredCodes

    found, rows = _rows_of(workspace)
    versions = {row.series: row.codes_version for row in rows if row.codes_version}
    now = partial(_version_now, root=found.root, settings=found.settings, tier="codes")
    return Current(versions, StoredCodes, found.codes, now)
