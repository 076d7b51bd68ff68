"""Tiny single-frame DICOM files with every attribute a scan looks at, and any of them changed or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, PositronEmissionTomographyImageStorage

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
SERIES = "1.2.826.0.1.3680043.10.999.1"


def tiny(index: int = 0, **changes: Any) -> Dataset:
    """One 6 x 5 slice, 2 mm above the one before. changes: keyword = value, or None to leave the attribute out."""
    modality = changes.pop("Modality", "CT")
    pixels = changes.pop("pixels", None)
    dataset = Dataset()
    dataset.SOPClassUID = STORAGE.get(modality, CTImageStorage)
    dataset.SOPInstanceUID = f"{SERIES}.{index + 1}"
    dataset.SeriesInstanceUID = SERIES
    dataset.PatientID = "patient-7"
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer = "GE MEDICAL SYSTEMS"
    dataset.Rows, dataset.Columns = 6, 5
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelSpacing = [0.5, 0.75]
    dataset.SliceThickness = 2.0
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-10.0, -20.0, 30.0 + 2.0 * index]
    dataset.InstanceNumber = index + 1
    if modality != "MR":
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dtype = np.uint16
    for keyword, value in changes.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if pixels is None:
        pixels = stored(index)
    dataset.PixelData = pixels if isinstance(pixels, bytes) else np.asarray(pixels, dtype=dtype).tobytes()
    dataset["PixelData"].VR = "OW"
    if "PixelData" in changes and changes["PixelData"] is None:
        del dataset.PixelData
    return dataset


def stored(index: int) -> np.ndarray:
    """The pixels of one tiny slice: no two slices are alike."""
    return (np.arange(30).reshape(6, 5) + 100 * index).astype(np.uint16)


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write one file as Part 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_all(datasets: list[Dataset], folder: Path) -> Path:
    """Write files 000.dcm, 001.dcm, ..."""
    for number, dataset in enumerate(datasets):
        save(dataset, folder / f"{number:03d}.dcm")
    return folder
