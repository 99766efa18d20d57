"""Volumes and their geometry: reading every format, writing, changing grids."""

from medar.volume.files import files_of
from medar.volume.geometry import Affine, Grid, Shape3, Spacing
from medar.volume.header import Header, ReadOptions
from medar.volume.read import load_volume, read_header, read_volume
from medar.volume.resample import resample
from medar.volume.volume import Provenance, Volume
from medar.volume.write import write_channels, write_nifti
from medar.volume.write_volume import check_written_ending, description_of, write_volume

__all__ = [
    "Affine",
    "Grid",
    "Header",
    "Provenance",
    "ReadOptions",
    "Shape3",
    "Spacing",
    "Volume",
    "check_written_ending",
    "description_of",
    "files_of",
    "load_volume",
    "read_header",
    "read_volume",
    "resample",
    "write_channels",
    "write_nifti",
    "write_volume",
]
