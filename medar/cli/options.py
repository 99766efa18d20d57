"""Options that several commands have in common."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.manifest import Manifest
    from medar.tokenizer.detail import Detail
    from medar.volume import ReadOptions


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files with ambiguous content are read."""

    channels: bool = False
    """Accept a fourth axis, as channels."""
    assume_spacing: str | None = None
    """Spacing of files without orientation: "header", or mm such as 1,1,2.5; axes are RAS+."""
    nonfinite: str = "error"
    """NaN and Inf voxels: "error", "min" (the smallest finite voxel), "keep", or a number."""
    series: str | None = None
    """SeriesInstanceUID to read from a DICOM folder with several series."""
    allow_outside: bool = False
    """Read data files that a NRRD or MetaImage header names outside of its folder."""

    def options(self) -> "ReadOptions":
        """The options of `read_volume`."""
        from medar.volume import ReadOptions

        return ReadOptions(
            channels=self.channels,
            assume_spacing=_spacing(self.assume_spacing),
            nonfinite=_policy(self.nonfinite),
            series=self.series,
            allow_outside=self.allow_outside,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataSet:
    """How a data set is read."""

    attributes: Path | None = None
    """CSV or TSV with one row per case (id, split, attributes); default: the one in the folder."""
    modality: Literal["CT", "MR"] | None = None
    """Modality of data sets that do not specify it."""
    keep_attributes: str | None = None
    """Attributes to keep although they may identify people, such as scan_date,name; or "all"."""
    seed: int = 0
    """Seed of the split into train, val and test, if the data set has none."""

    def read(self, path: Path, stored: "Manifest | None" = None) -> "Manifest":
        """Read the manifest of the data set at `path`; splits in `stored` do not change."""
        from medar.data.sources import read_manifest

        return read_manifest(
            path,
            attributes=self.attributes,
            modality=self.modality,
            keep_attributes=[n.strip() for n in (self.keep_attributes or "").split(",") if n],
            seed=self.seed,
            stored=stored,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the work on cases is done."""

    address: Annotated[str | None, Parameter(name="--cluster")] = None
    """Dask cluster that works on the cases: the address of its scheduler, such as tcp://host:8786,
    its scheduler file, or local:N for N workers on this machine (docs/how-to/cluster.md); default:
    this machine, without Dask."""

    def use(self, *shared: Path | None, out: Path | None = None) -> AbstractContextManager[None]:
        """Inside the block the cluster works, if there is one; see `use_cluster`."""
        from medar.cluster import use_cluster

        existing = (path for path in shared if path is not None and path.exists())
        return use_cluster(self.address, *existing, out=out)


THIS_MACHINE = Cluster()


def worker_count(workers: int | None, cluster: Cluster = THIS_MACHINE) -> int:
    """The requested number of processes; default: one per CPU core.

    Raises:
        MedarError: fewer than one, or a cluster, which has workers of its own.
    """
    from medar.parallel import default_workers

    if workers is not None and cluster.address is not None:
        raise MedarError(f"--workers {workers}: a cluster has its own workers; omit it")
    if workers is not None and workers < 1:
        raise MedarError(f"--workers must be at least 1, got {workers}")
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
            f"--assume-spacing must be 'header' or three numbers in mm such as 1,1,2.5, got {text}"
        ) from error
    return x, y, z


def _policy(text: str) -> float | Literal["error", "min", "keep"]:
    if text in ("error", "min", "keep"):
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError as error:
        raise MedarError(
            f"--nonfinite must be 'error', 'min', 'keep' or a number, got {text}"
        ) from error


def parse_detail(text: str) -> "Detail":
    """The value of --detail: "auto", "none", or a number of steps.

    Raises:
        MedarError: it is none of them.
    """
    if text == "auto":
        return "auto"
    if text == "none":
        return "none"
    if not text.isdecimal() or int(text) < 1:
        raise MedarError(f"--detail {text}: must be auto, none, or a number of steps from 1 on")
    return int(text)
