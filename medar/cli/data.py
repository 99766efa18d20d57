"""`medar data`: check, plan, prepare and show data sets; make phantoms."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, Parameter

from medar.cli.options import THIS_MACHINE, Cluster, DataSet, Reading, worker_count
from medar.cli.output import print_json, print_pairs, print_table
from medar.errors import MedarError
from medar.words import format_count

if TYPE_CHECKING:
    from medar.data.plan import Plan

app = App(
    name="data",
    help="Check, plan, prepare and show data sets; make phantoms.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)

READING = Reading()
DATASET = DataSet()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlanValues:
    """Values of the plan that replace derived ones."""

    voxels: int | None = None
    """Voxels that a model may see at once; default: 2097152 (128 cubed)."""
    spacing: tuple[float, float, float] | None = None
    """Voxel sides in mm."""
    size: tuple[int, int, int] | None = None
    """Size of a whole volume or of a patch, in voxels."""
    mode: Literal["volume", "patch"] | None = None
    """One array of SIZE per case, or patches of SIZE cut from larger arrays."""
    downsampling: tuple[int, int, int] | None = None
    """Factor from voxels to the latent grid, per axis."""
    centre: Literal["image", "foreground"] | None = None
    """Centre of a cropped volume: that of the image or of its foreground."""
    window: tuple[float, float] | None = None
    """Intensity window in the volume's units (HU), for every channel."""
    percentiles: tuple[float, float] | None = None
    """Intensity window in percentiles of each volume, for every channel."""

    def overrides(self) -> dict[str, Any]:
        """The given values, in the form that `make_plan` takes."""
        names = ("spacing", "size", "mode", "downsampling", "centre")
        given = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        if self.window and self.percentiles:
            raise MedarError("--window and --percentiles exclude each other; pass one of them")
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
    model: Path | None = None,
    json: bool = False,
    workers: int | None = None,
    cluster: Cluster = THIS_MACHINE,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Read every header of a data set and report all problems; exit code 1 if any is an error.

    Parameters
    ----------
    path
        Folder, dataset.json, JSONL manifest or single volume.
    deep
        Also read every voxel.
    model
        A generator, as for `medar score`: cases that are surprising to it are warnings.
    json
        Print the report as one JSON object (docs/reference/datasets.md).
    workers
        Processes; default: one per CPU core.
    """
    from medar.data.check import check as run

    if model is not None:
        from medar.evaluation.surprise.files import surprises
        from medar.synthesis import Synthesizer

    manifest = dataset.read(path)
    count = worker_count(workers, cluster)
    if cluster.address is not None and not deep and model is None:
        raise MedarError(
            f"--cluster {cluster.address}: only --deep and --model take long; add one, or omit both"
        )
    options = reading.options()
    synthesizer = None if model is None else Synthesizer.from_pretrained(model)
    with cluster.use(path, model):
        report = run(manifest, deep=deep, workers=count, options=options)
        if synthesizer is not None:
            report = report.with_problems(surprises(synthesizer, manifest, options=options))
    if json:
        print_json(report.to_dict())
        return 1 if report.errors else 0
    print_pairs(
        f"{report.data} ({report.source})",
        {
            "cases": f"{report.cases}, {report.labelled} labelled, "
            f"{format_count(report.subjects, 'subject')}",
            "splits": ", ".join(f"{n} {split}" for split, n in report.splits.items()),
            **{k: v for k, v in report.summary.items() if not isinstance(v, dict | list)},
        },
    )
    if report.problems:
        print_table(
            ("severity", "code", "case", "message"),
            ((p.severity, p.code, p.case, p.message) for p in report.problems),
        )
    print(f"{format_count(report.errors, 'error')}, {format_count(report.warnings, 'warning')}")
    return 1 if report.errors else 0


@app.command
def plan(
    path: Path,
    /,
    *,
    out: Path,
    json: bool = False,
    workers: int | None = None,
    cluster: Cluster = THIS_MACHINE,
    values: PlanValues = PLAN_VALUES,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Measure a data set and derive the plan by which its volumes are prepared.

    Writes OUT/fingerprint.json and OUT/plan.yaml; an earlier plan is kept as
    OUT/plan.previous.yaml. Values given here replace derived ones, and the other values take them
    into account. Exit code 1 if cases could not be read; the plan is made from the others.

    Parameters
    ----------
    path
        Folder, dataset.json, JSONL manifest or single volume.
    out
        Folder to write to, which `prepare` will fill.
    json
        Print one JSON object: the plan's values, `latent` (the latent grid) and `failed`.
    workers
        Processes; default: one per CPU core.
    """
    from medar.data.fingerprint import Fingerprint
    from medar.data.planning import plan_data_set
    from medar.data.prepared import FINGERPRINT_FILE, PLAN_FILE
    from medar.settings import to_dict

    count = worker_count(workers, cluster)
    manifest = dataset.read(path)
    with cluster.use(path, out=out):
        derived = plan_data_set(
            manifest,
            out,
            workers=count,
            voxels=values.voxels,
            reading=reading.options(),
            overrides=values.overrides(),
        )
    failed = Fingerprint.load(out / FINGERPRINT_FILE).failed
    if json:
        print_json({**to_dict(derived), "latent": list(derived.latent), "failed": failed})
        return 1 if failed else 0
    _print_plan(derived, out / PLAN_FILE)
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
    cluster: Cluster = THIS_MACHINE,
    values: PlanValues = PLAN_VALUES,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Bring every case of a data set to its plan's form, in a cache that training reads.

    Without a plan in OUT, one is made first. Existing results are kept: a second run does nothing,
    a changed setting redoes what depends on it, an interrupted run is resumed. Exit code 1 if cases
    failed, or are prepared without their label because it is damaged. Values given here replace
    those of an existing plan and leave its other values as they are; to derive these again, use
    `medar data plan`.

    Parameters
    ----------
    path
        Folder, dataset.json, JSONL manifest or single volume.
    out
        Folder to fill.
    plan
        Plan to use instead of OUT/plan.yaml.
    json
        Print one JSON object: folder, made, kept, failed, unlabelled, notes.
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
    count = worker_count(workers, cluster)
    with cluster.use(path, out=out):
        chosen = resolve_plan(
            manifest,
            out,
            workers=count,
            file=plan,
            voxels=values.voxels,
            reading=reading.options(),
            overrides=values.overrides(),
        )
        try:
            done = run(manifest, chosen, out, workers=count)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command again to continue") from None
    if json:
        print_json(
            {
                "folder": str(done.folder),
                "made": done.made,
                "kept": done.kept,
                "failed": done.failed,
                "unlabelled": done.unlabelled,
                "notes": done.notes,
            }
        )
        return 1 if done.failed or done.unlabelled else 0
    remarks = [(case, "failed", reason) for case, reason in done.failed.items()]
    remarks += [(case, "without label", reason) for case, reason in done.unlabelled.items()]
    remarks += [(case, "note", note) for case, notes in done.notes.items() for note in notes]
    if remarks:
        print_table(("case", "", "message"), remarks)
    made = format_count(done.made, "case")
    print(f"{out}: {made} made, {done.kept} kept, {len(done.failed)} failed")
    return 1 if done.failed or done.unlabelled else 0


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
    """Draw three orthogonal slices of a volume as a PNG, with its label as an overlay.

    Parameters
    ----------
    case
        A volume file, or the id of a case in DATA; default: its first case.
    data
        A data set, or a folder that `prepare` filled; then the prepared case is drawn.
    label
        Label map of a volume file.
    out
        The PNG file; default: the case's name in the current folder.
    inverse
        Draw the original, the prepared case restored to the original's grid and intensities, and
        their difference; DATA must be prepared.
    window
        Intensities shown as black and white, in the volume's units.
    modality
        Modality of a volume file; CT is shown in a soft tissue window.
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
    modality: Literal["ct", "mr"] | None = None,
    paired: bool = False,
    seed: int = 0,
    spacing: float = 6.0,
) -> None:
    """Make a data set of labelled synthetic torsos, in the MSD layout, for trying medar out.

    Parameters
    ----------
    out
        A new folder, or a folder of phantoms to replace.
    n
        Number of volumes.
    modality
        CT in Hounsfield units, the default, or MR of several contrasts.
    paired
        Several modalities of the same anatomies: the data sets OUT/ct, OUT/t1w, OUT/t2w and
        OUT/pdw, with the same cases on the same grids.
    seed
        Volume k depends on SEED and k only.
    spacing
        Typical voxel side in mm; default: 6, which gives about 60 voxels per side.
    """
    from medar.data.phantoms import write_paired_phantoms, write_phantoms
    from medar.data.phantoms.paired import PAIRED

    if paired:
        if modality is not None:
            raise MedarError(f"--modality {modality}: --paired makes CT and MR; omit one of them")
        write_paired_phantoms(out, n=n, seed=seed, spacing=spacing)
        print(f"{out}: {format_count(n, 'phantom')}, each as {', '.join(PAIRED)}")
        return
    write_phantoms(out, n=n, modality=modality or "ct", seed=seed, spacing=spacing)
    print(f"{out}: {n} {(modality or 'ct').upper()} phantoms")


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
