"""Options that several commands share, as they are typed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.manifest import Manifest
    from medar.volume import ReadOptions


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """Files that leave a question open."""

    channels: bool = False
    """Take a fourth axis as channels instead of refusing it."""
    assume_spacing: str | None = None
    """For files without orientation: "header", or mm such as 1,1,2.5; axes are taken as RAS+."""
    nonfinite: str = "error"
    """NaN and Inf voxels: "error", "min" (the smallest finite voxel), "keep", or a number."""
    series: str | None = None
    """SeriesInstanceUID to take from a DICOM folder that holds several."""

    def options(self) -> "ReadOptions":
        """The options as the library takes them."""
        from medar.volume import ReadOptions

        return ReadOptions(
            channels=self.channels,
            assume_spacing=_spacing(self.assume_spacing),
            nonfinite=_policy(self.nonfinite),
            series=self.series,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataSet:
    """How a data set is read."""

    attributes: Path | None = None
    """CSV or TSV with a row a case (id, split, any attribute); default: the one in the folder."""
    modality: Literal["CT", "MR"] | None = None
    """For data sets that do not say what their volumes are."""
    seed: int = 0
    """Decides which subjects go to train, val and test where the data set does not."""

    def read(self, path: Path, stored: "Manifest | None" = None) -> "Manifest":
        """The manifest of the data set at `path`; `stored` splits do not change."""
        from medar.data.sources import read_manifest

        return read_manifest(
            path,
            attributes=self.attributes,
            modality=self.modality,
            seed=self.seed,
            stored=stored,
        )


def worker_count(workers: int | None) -> int:
    """The number of processes asked for, or one a processor.

    Raises:
        MedarError: fewer than one.
    """
    from medar.parallel import default_workers

    if workers is not None and workers < 1:
        raise MedarError(f"--workers {workers}: at least 1 is needed")
    return workers or default_workers()


def _spacing(text: str | None) -> tuple[float, float, float] | Literal["header"] | None:
    if text is None:
        return None
    if text == "header":
        return "header"
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise MedarError(
            f"--assume-spacing {text}: 'header' or three numbers in mm such as 1,1,2.5 are needed"
        ) from error
    return x, y, z


def _policy(text: str) -> float | Literal["error", "min", "keep"]:
    if text in ("error", "min", "keep"):
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError as error:
        raise MedarError(
            f"--nonfinite {text}: 'error', 'min', 'keep' or a number is needed"
        ) from error
