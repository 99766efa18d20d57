"""`medar data`: check, plan, prepare and look at data sets; write phantoms."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, Parameter

from medar.cli.options import DataSet, Reading, worker_count
from medar.cli.output import print_json, print_pairs, print_table
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.plan import Plan

app = App(
    name="data",
    help="Check, plan, prepare and look at data sets; write phantoms.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

READING = Reading()
DATASET = DataSet()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlanValues:
    """Values of the plan that are given instead of derived."""

    voxels: int | None = None
    """Voxels that a model may see at once; default 2097152 (128 cubed)."""
    spacing: tuple[float, float, float] | None = None
    """Voxel sides in mm."""
    size: tuple[int, int, int] | None = None
    """Voxels of a whole volume, or of a patch."""
    mode: Literal["volume", "patch"] | None = None
    """One array of SIZE a case, or patches of SIZE cut from larger ones."""
    downsampling: tuple[int, int, int] | None = None
    """Factors from voxels to the latent grid."""
    centre: Literal["image", "foreground"] | None = None
    """What stays in the middle when volumes are cropped."""
    window: tuple[float, float] | None = None
    """Intensity window in the volume's units (HU), for every channel."""
    percentiles: tuple[float, float] | None = None
    """Intensity window between percentiles of each volume, for every channel."""

    def overrides(self) -> dict[str, Any]:
        """The values that were given, as `make_plan` takes them."""
        names = ("spacing", "size", "mode", "downsampling", "centre")
        given = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        if self.window and self.percentiles:
            raise MedarError("--window and --percentiles exclude each other; give one")
        for kind, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair:
                rule = {"kind": kind, "low": pair[0], "high": pair[1]}
                given["intensity"] = {"other": rule}
        return given


PLAN_VALUES = PlanValues()


@app.command
def check(
    path: Path,
    /,
    *,
    deep: bool = False,
    json: bool = False,
    workers: int | None = None,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Read every header of a data set and report all problems; exit code 1 if any is an error.

    Parameters
    ----------
    path
        Folder, dataset.json, JSONL manifest or single volume.
    deep
        Read every voxel too.
    json
        Print the report as one JSON object (docs/reference/datasets.md).
    workers
        Processes; default: one per CPU core.
    """
    from medar.data.check import check as run

    manifest = dataset.read(path)
    report = run(manifest, deep=deep, workers=worker_count(workers), options=reading.options())
    if json:
        print_json(report.to_dict())
        return 1 if report.errors else 0
    print_pairs(
        f"{report.data} ({report.source})",
        {
            "cases": f"{report.cases}, {report.labelled} labelled, {report.subjects} subjects",
            "splits": ", ".join(f"{n} {split}" for split, n in report.splits.items()),
            **{k: v for k, v in report.summary.items() if not isinstance(v, dict | list)},
        },
    )
    if report.problems:
        print_table(
            ("severity", "code", "case", "message"),
            ((p.severity, p.code, p.case, p.message) for p in report.problems),
        )
    print(f"{report.errors} errors, {report.warnings} warnings")
    return 1 if report.errors else 0


@app.command
def plan(
    path: Path,
    /,
    *,
    out: Path,
    json: bool = False,
    workers: int | None = None,
    values: PlanValues = PLAN_VALUES,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Measure a data set and write how its volumes will be brought to one form.

    Leaves OUT/fingerprint.json and OUT/plan.yaml, and keeps a plan that was there before as
    OUT/plan.previous.yaml. Values given here replace derived ones; what depends on them follows.
    Exit code 1 if cases could not be read: the plan is made from the others.

    Parameters
    ----------
    path
        Folder, dataset.json, JSONL manifest or single volume.
    out
        Folder to write to; the one that `prepare` will fill.
    json
        Print one JSON object: the plan's values, `latent` (its latent grid) and `failed`.
    workers
        Processes; default: one per CPU core.
    """
    from medar.data.fingerprint import Fingerprint
    from medar.data.planning import plan_data_set
    from medar.data.prepared import FINGERPRINT_FILE, PLAN_FILE
    from medar.settings import to_dict

    made = plan_data_set(
        dataset.read(path),
        out,
        workers=worker_count(workers),
        voxels=values.voxels,
        reading=reading.options(),
        overrides=values.overrides(),
    )
    failed = Fingerprint.load(out / FINGERPRINT_FILE).failed
    if json:
        print_json({**to_dict(made), "latent": list(made.latent), "failed": failed})
        return 1 if failed else 0
    _print_plan(made, out / PLAN_FILE)
    if failed:
        rows = ((case, "not measured", reason) for case, reason in failed.items())
        print_table(("case", "", "message"), rows)
    return 1 if failed else 0


@app.command
def prepare(
    path: Path,
    /,
    *,
    out: Path,
    plan: Path | None = None,
    json: bool = False,
    workers: int | None = None,
    values: PlanValues = PLAN_VALUES,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Bring every case of a data set to its plan's form, into a cache that training reads.

    Without a plan in OUT, one is made first. A second run does nothing, a changed setting redoes
    what depends on it, an interrupted run goes on; exit code 1 if cases had to be set aside.
    Where there is a plan, values given here replace its own and no others: to derive what depends
    on them anew, use `medar data plan`.

    Parameters
    ----------
    path
        Folder, dataset.json, JSONL manifest or single volume.
    out
        Folder to fill.
    plan
        A plan to use instead of OUT/plan.yaml.
    json
        Print one JSON object: folder, made, kept, failed, notes.
    workers
        Processes, each with one case in memory; default: one per CPU core.
    """
    from medar.data.manifest import Manifest
    from medar.data.planning import resolve_plan
    from medar.data.prepare import prepare as run
    from medar.data.prepared import MANIFEST_FILE, check_folder

    check_folder(out)
    stored = out / MANIFEST_FILE
    manifest = dataset.read(path, Manifest.load(stored) if stored.exists() else None)
    chosen = resolve_plan(
        manifest,
        out,
        workers=worker_count(workers),
        file=plan,
        voxels=values.voxels,
        reading=reading.options(),
        overrides=values.overrides(),
    )
    try:
        done = run(manifest, chosen, out, workers=worker_count(workers))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to continue") from None
    if json:
        print_json(
            {
                "folder": str(done.folder),
                "made": done.made,
                "kept": done.kept,
                "failed": done.failed,
                "notes": done.notes,
            }
        )
        return 1 if done.failed else 0
    remarks = [(case, "set aside", reason) for case, reason in done.failed.items()]
    remarks += [(case, "note", note) for case, notes in done.notes.items() for note in notes]
    if remarks:
        print_table(("case", "", "message"), remarks)
    print(f"{out}: {done.made} cases made, {done.kept} kept, {len(done.failed)} set aside")
    return 1 if done.failed else 0


@app.command
def show(
    case: str | None = None,
    /,
    *,
    data: Path | None = None,
    label: Path | None = None,
    out: Path | None = None,
    inverse: bool = False,
    window: tuple[float, float] | None = None,
    modality: Literal["CT", "MR"] | None = None,
    reading: Reading = READING,
) -> None:
    """Draw three orthogonal slices of a volume to a PNG, with its label on top.

    Parameters
    ----------
    case
        A volume file, or the id of a case in DATA; default its first case.
    data
        A data set, or a folder that `prepare` filled; from the latter the prepared case is drawn.
    label
        A label map for a volume file.
    out
        The PNG; default the case's name in this folder.
    inverse
        Draw the original, the prepared case taken back to it, and their difference; DATA must be
        prepared.
    window
        Intensities shown as black and white, in the volume's units.
    modality
        For a volume file: CT is shown in a soft tissue window.
    """
    from medar.cli.show import draw_case

    target = draw_case(
        case,
        data=data,
        label=label,
        out=out,
        inverse=inverse,
        window=window,
        modality=modality,
        options=reading.options(),
    )
    print(target)


@app.command
def phantoms(
    out: Path,
    /,
    *,
    n: int = 64,
    modality: Literal["ct", "mr"] = "ct",
    seed: int = 0,
    spacing: float | None = None,
) -> None:
    """Write labelled synthetic torsos as an MSD data set: bodies to try everything on.

    Parameters
    ----------
    out
        A new folder, or one of phantoms to replace.
    n
        Number of volumes.
    modality
        CT in Hounsfield units, or MR in several contrasts.
    seed
        Volume k depends on the seed and k alone.
    spacing
        Mean voxel side in mm; default about 60 voxels a side.
    """
    from medar.data.phantoms import write_phantoms

    given = {} if spacing is None else {"spacing": spacing}
    write_phantoms(out, n=n, modality=modality, seed=seed, **given)
    print(f"{out}: {n} {modality.upper()} phantoms")


def _print_plan(plan: "Plan", file: Path) -> None:
    sides = list(zip(plan.size, plan.spacing, strict=True))
    rules = {name: f"{r.kind} {r.low:g} to {r.high:g}" for name, r in plan.intensity.items()}
    print_pairs(
        str(file),
        {
            "spacing": " x ".join(f"{s:g}" for s in plan.spacing) + " mm",
            plan.mode: " x ".join(map(str, plan.size)) + " voxels",
            "covers": " x ".join(f"{n * s:.0f}" for n, s in sides) + " mm",
            "downsampling": " x ".join(map(str, plan.downsampling)),
            "latent grid": " x ".join(map(str, plan.latent)),
            **{f"intensity {name}": rule for name, rule in rules.items()},
            "labels": ", ".join(f"{v} {name}" for v, name in plan.labels.items()) or "none",
        },
    )
