"""Whatever the order, the names, the folders, the packing or the nights in which files come: the same volumes."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from phantoms import ct_volume, mr_volume, pet_volume, write_ct_series
from pydicom.dataset import Dataset
from tiny import SERIES, save, tiny

from archive.geometry import Geometry
from archive.keys import Pseudonyms
from archive.scan import scan
from archive.series import read_series
from archive.volume import Volume
from archive.volumes import content_digest
from archive.workspace import Workspace, open_volumes
from flows.ingest import ingest

KEYS = Pseudonyms(b"of no worth to anybody")
AFFINE_MM = 1e-3
SMALL = (5, 12, 10)
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def tensor_like(folder: Path) -> list[Path]:
    """An MR series of two echoes with two times each, the numbers of its images mixed."""
    number, files = 0, []
    for echo in (10.0, 20.0):
        for time in (1, 2):
            for place in range(4):
                dataset = tiny(
                    number,
                    Modality="MR",
                    SeriesInstanceUID=f"{SERIES}.5",
                    EchoTime=echo,
                    TemporalPositionIdentifier=time,
                    ImagePositionPatient=[0.0, 0.0, 3.0 * place],
                    InstanceNumber=(number * 7) % 16 + 1,
                )
                files.append(save(dataset, folder / f"{number:03d}.dcm"))
                number += 1
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """CT with a tilt, oblique MR over time, PET with slopes per slice, two echoes, and one copy."""
    folder = tmp_path_factory.mktemp("properties")
    found = [
        *write_ct_series(folder / "ct", ct_volume(SMALL, tilt_degrees=12.0), name="tilted"),
        *write_ct_series(folder / "mr", mr_volume(SMALL, timepoints=3, oblique=True), name="times", patient=2),
        *write_ct_series(folder / "pt", pet_volume(SMALL), name="slopes", patient=3),
        *tensor_like(folder / "echoes"),
    ]
    shutil.copy(found[2], folder / "copy.dcm")
    return [*found, folder / "copy.dcm"]


def volumes(folder: Path) -> dict[str, str]:
    """Content digests by series pseudonym; everything must be readable."""
    result = scan(folder, pseudonyms=KEYS)
    assert [finding.code for finding in result.findings] == []
    return {plan.series: content_digest(read_series(plan)) for plan in result.plans}


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory) -> dict[str, str]:
    """What one flat folder in the plain order gives."""
    folder = tmp_path_factory.mktemp("plain")
    for number, path in enumerate(files):
        shutil.copy(path, folder / f"{number:03d}.dcm")
    found = volumes(folder)
    assert len(found) == 5  # CT, MR, PT, and each echo
    return found


@examples(max_examples=12, deadline=None, suppress_health_check=SLOW)
@given(seed=st.integers(0, 2**32), folders=st.integers(1, 4), bare=st.booleans())
def test_names_order_and_folders_say_nothing(files, expected, tmp_path_factory, seed, folders, bare):
    chance = random.Random(seed)
    root = tmp_path_factory.mktemp("shuffled")
    names = [f"{number:04d}" for number in chance.sample(range(10_000), len(files))]
    for path, name in zip(files, names, strict=True):
        target = root / f"f{chance.randrange(folders)}" / (name if bare else f"{name}.dcm")
        target.parent.mkdir(exist_ok=True)
        os.link(path, target)
    assert volumes(root) == expected


@examples(max_examples=6, deadline=None, suppress_health_check=SLOW)
@given(seed=st.integers(0, 2**32), tar=st.booleans())
def test_nor_does_packing(files, expected, tmp_path_factory, seed, tar):
    chance = random.Random(seed)
    root = tmp_path_factory.mktemp("packed")
    inside = set(chance.sample(range(len(files)), chance.randrange(1, len(files))))
    order = chance.sample(range(len(files)), len(files))
    packed = tarfile.open(root / "some.tar", "w") if tar else zipfile.ZipFile(root / "some.zip", "w")  # noqa: SIM115
    with packed:
        for number in order:
            if number not in inside:
                os.link(files[number], root / f"{number:03d}.dcm")
            elif isinstance(packed, tarfile.TarFile):
                packed.add(files[number], f"in/{number:03d}.dcm")
            else:
                packed.write(files[number], f"in/{number:03d}.dcm")
    assert volumes(root) == expected


@examples(max_examples=5, deadline=None, suppress_health_check=SLOW)
@given(seed=st.integers(0, 2**32), nights=st.integers(2, 4))
def test_any_split_into_runs_ends_in_the_same_store(files, tmp_path_factory, seed, nights):
    """Nights that see a part of a series may refuse it or store what is there; the last one has it all."""
    chance = random.Random(seed)
    source, root = tmp_path_factory.mktemp("nights"), tmp_path_factory.mktemp("home") / "ws"
    home = Workspace.open(root, create=True)
    alias = home.register_source(source)
    night = [chance.randrange(nights) for _ in files]
    for now in range(nights):
        for number, path in enumerate(files):
            if night[number] == now:
                shutil.copy(path, source / f"{number:03d}.dcm")
        ingest.fn(workspace=str(root), sources=[alias], settings=["cluster=inline"])
    once = Workspace.open(tmp_path_factory.mktemp("once") / "ws", create=True)
    ingest.fn(workspace=str(once.root), sources=[once.register_source(source, alias)], settings=["cluster=inline"])
    assert _stored(root) == _stored(once.root)
    assert len(_stored(root)) == 5
    assert Workspace.open(root).catalog.quarantine() == []
    last = ingest.fn(workspace=str(root), sources=[alias], settings=["cluster=inline"])
    assert (last.counts["ingested"], last.counts["unchanged"]) == (0, 5)


def on_borders(chance: random.Random) -> list[Dataset]:
    """Slices whose orientation, spacing and echo time are one, but each is rounded to either side of a border."""

    def near(value: float, jitter: float) -> float:
        return value + chance.choice((-1, 1)) * jitter

    found = []
    for place in range(6):
        sine, cosine = near(0.1005, 2e-6), 0.994937  # a key holds three digits of it
        found.append(
            tiny(
                place,
                Modality="MR",
                EchoTime=near(2.465, 1e-3),
                PixelSpacing=[near(0.70005, 2e-6), 0.75],
                ImageOrientationPatient=[cosine, sine, 0.0, -sine, cosine, 0.0],
            )
        )
    return found


@examples(max_examples=12, deadline=None, suppress_health_check=SLOW)
@given(seed=st.integers(0, 2**32), nights=st.integers(2, 4))
def test_slices_that_come_later_rename_nothing(tmp_path_factory, seed, nights):
    """On the border of a rounding too: the key that a series had on its first night stays, and no other appears."""
    chance = random.Random(seed)
    datasets = on_borders(chance)
    root = tmp_path_factory.mktemp("home") / "ws"
    source = tmp_path_factory.mktemp("borders")
    alias = Workspace.open(root, create=True).register_source(source)
    night = [chance.randrange(nights) for _ in datasets]
    keys: set[str] = set()
    for now in range(nights):
        for number, dataset in enumerate(datasets):
            if night[number] == now:
                save(dataset, source / f"{number}.dcm")
        ingest.fn(workspace=str(root), sources=[alias], settings=["cluster=inline"])
        stored = _stored(root)
        assert keys <= set(stored)
        keys = set(stored)
    once = Workspace.open(tmp_path_factory.mktemp("once") / "ws", create=True)
    renamed = tmp_path_factory.mktemp("renamed")
    for name, number in enumerate(chance.sample(range(len(datasets)), len(datasets))):
        save(datasets[number], renamed / f"{name}.dcm")
    ingest.fn(workspace=str(once.root), sources=[once.register_source(renamed)], settings=["cluster=inline"])
    assert len(keys) == 1
    assert list(stored.values()) == list(_stored(once.root).values())


def test_values_that_are_one_share_a_grid_whichever_side_of_a_border(tmp_path):
    for number, dataset in enumerate(on_borders(random.Random(1))):
        save(dataset, tmp_path / f"{number}.dcm")
    (plan,) = scan(tmp_path, pseudonyms=KEYS).plans
    assert len(plan.files) == 6


def _stored(root: Path) -> dict[str, str]:
    rows = {row.version: row.content_digest for row in Workspace.open(root).catalog.volumes_stored()}
    return {row.series: rows[row.volume_version] for row in Workspace.open(root).catalog.series()}


@examples(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(st.floats(0.4, 8.0), st.floats(0.2, 3.0), st.floats(0.2, 3.0)),
    tilt=st.floats(-28.0, 28.0),
    origin=st.tuples(*[st.floats(-900.0, 900.0)] * 3),
    slices=st.integers(2, 6),
    seed=st.integers(0, 2**32),
)
def test_every_voxel_keeps_its_place(tmp_path_factory, angles, spacing, tilt, origin, slices, seed):
    """Any orientation, spacing, tilt and order: each slice's corner and voxels are where they were."""
    one, two, three = np.radians(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(one), -np.sin(one)], [0, np.sin(one), np.cos(one)]])
    about_y = np.array([[np.cos(two), 0, np.sin(two)], [0, 1, 0], [-np.sin(two), 0, np.cos(two)]])
    about_z = np.array([[np.cos(three), -np.sin(three), 0], [np.sin(three), np.cos(three), 0], [0, 0, 1]])
    matrix = np.eye(4)
    axes = about_z @ about_y @ about_x
    matrix[:3, 2], matrix[:3, 1] = axes[:, 0] * spacing[2], axes[:, 1] * spacing[1]
    matrix[:3, 0] = (axes[:, 2] + axes[:, 1] * np.tan(np.radians(tilt))) * spacing[0]
    matrix[:3, 3] = origin
    shape = (slices, 7, 6)
    voxels = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    written = Volume(
        voxels,
        "zyx",
        Geometry(shape, tuple(map(tuple, matrix))),
        "CT",
        intercept=(0.0,),
        units="HU",
        bits_stored=16,
    )
    folder = tmp_path_factory.mktemp("placed") / "in"
    order = random.Random(seed).sample(range(slices), slices)
    write_ct_series(folder, written, order=order)
    (plan,) = scan(folder, pseudonyms=KEYS).plans
    read = read_series(plan)
    backwards = float(read.geometry.matrix[:3, 0] @ matrix[:3, 0]) < 0
    places = range(slices)[::-1] if backwards else range(slices)
    assert np.array_equal(read.voxels, voxels[::-1] if backwards else voxels)
    corners = np.array([[z, y, x, 1] for z in range(slices) for y in (0, 6) for x in (0, 5)], dtype=float)
    there = corners.copy()
    there[:, 0] = [list(places)[int(z)] for z in corners[:, 0]]
    error = np.abs(read.geometry.matrix @ there.T - matrix @ corners.T).max()
    assert error < AFFINE_MM * max(1.0, np.abs(corners[:, :3] * [spacing]).max() / 10)


@examples(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(
    gaps=st.lists(st.sampled_from([1.0, 1.0, 1.0, 1.02, 0.98, 1.3, 1.6, 2.0]), min_size=3, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_spacing_is_regular_kept_exactly_or_refused(tmp_path_factory, gaps, seed):
    """Never moved: what comes in has its slices where the headers say, to a thousandth of a millimetre."""
    folder = tmp_path_factory.mktemp("gaps")
    places = [0.0, *np.cumsum(gaps).tolist()]
    for name, number in enumerate(random.Random(seed).sample(range(len(places)), len(places))):
        where = {"ImagePositionPatient": [0.0, 0.0, round(5.0 * places[number], 4)]}
        save(tiny(number, SliceThickness=5.0, **where), folder / f"{name}.dcm")
    result = scan(folder, pseudonyms=KEYS)
    codes = {finding.code for finding in result.findings}
    if not result.plans:
        assert codes in ({"MISSING_SLICE"}, {"IRREGULAR_SPACING"})
        assert (codes == {"MISSING_SLICE"}) == (max(gaps) >= 1.5 * float(np.median(gaps)))
        return
    geometry = read_series(result.plans[0]).geometry
    exact = geometry.positions_mm or tuple(np.arange(len(places)) * geometry.spacing_mm[0])
    assert np.allclose(exact, 5.0 * np.array(places), atol=2e-3)
    mean = places[-1] / len(gaps)
    assert max(abs(gap - mean) for gap in gaps) <= 0.05 * mean + 1e-6


def test_stored_volumes_are_what_was_read(files, expected, tmp_path):
    home = Workspace.open(tmp_path / "ws", create=True)
    source = tmp_path / "in"
    source.mkdir()
    for number, path in enumerate(files):
        os.link(path, source / f"{number}.dcm")
    ingest.fn(workspace=str(home.root), sources=[home.register_source(source)], settings=["cluster=inline"])
    assert sorted(_stored(home.root).values()) == sorted(expected.values())
    assert len(open_volumes(home)) == len(expected)
