"""`medar run`: whole recipes, from a data set to models, results and a report."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, Parameter

from medar.cli.options import THIS_MACHINE, Cluster
from medar.cli.output import note, print_json, print_pairs, print_table
from medar.cli.training import Overrides, assignments
from medar.words import format_count

if TYPE_CHECKING:
    from medar.recipes.plan import StageSelection
    from medar.recipes.recipe import Recipe
    from medar.recipes.settings import SegmentationRecipeSettings, SynthesisSettings

    Settings = TypeVar("Settings", SynthesisSettings, SegmentationRecipeSettings)

app = App(
    name="run",
    help="Run whole recipes: from a data set to models, results and a report.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """How a recipe is run."""

    modality: Literal["CT", "MR"] | None = None
    """For volumes that do not state their modality; default: the YAML's data.modality, or the only
    one that the YAML's plan has."""
    until: str | None = None
    """The last stage to run."""
    from_: Annotated[str | None, Parameter(name="--from")] = None
    """The first stage to run; those before it must be done and unchanged."""
    force: Annotated[list[str] | None, Parameter(name="--force")] = None
    """A stage to run again even if nothing has changed; those that need it run again if its result
    changes. May be repeated."""
    dry_run: bool = False
    """Print the plan with estimated times, and run nothing."""
    max_minutes: Annotated[float | None, Parameter(name=("--max-minutes", "--minutes"))] = None
    """Time budget of all stages together, divided by the YAML's budget_weights."""
    memory: float | None = None
    """GB of the GPU that batches are sized for, if the YAML has the size of volumes; default: those
    of the GPU, if there is one."""
    register: str | None = None
    """Name in MLflow's registry; the recipe's last model becomes its next version."""
    alias: str | None = None
    """Alias of that version, such as champion; the previous version loses it."""
    untracked: bool = False
    """Do not log to MLflow."""
    json: bool = False
    """Print one JSON object: out, stages, report and verdict, or with --dry-run the plan."""
    cluster: Cluster = THIS_MACHINE

    def apply(self, settings: "Settings", data: Path | None) -> "Settings":
        """The recipe's settings with those of the command line."""
        if data is not None:
            settings = replace(settings, data=replace(settings.data, path=data))
        if self.modality is not None:
            settings = replace(settings, data=replace(settings.data, modality=self.modality))
        if self.max_minutes is not None:
            settings = replace(settings, max_minutes=self.max_minutes)
        return self._sized(settings).with_absolute_paths()

    def _sized(self, settings: "Settings") -> "Settings":
        """The settings with batches that fit the GPU's memory."""
        from medar.devices import card_memory
        from medar.recipes.sizing import GB, sized, trains_on_cpu

        if self.memory is not None:
            memory: float | None = self.memory * GB
        else:
            memory = None if trains_on_cpu(settings) else card_memory()
        if memory is None:
            return settings
        from medar.training.distributed import current_ranks  # loads torch

        settings, notes = sized(settings, memory, current_ranks().world_size)
        for line in notes:
            _note_on_rank_zero(line)
        return settings

    def tracking(self) -> dict[str, Any]:
        """The options of `Recipe` about MLflow."""
        return {"tracked": not self.untracked, "register": self.register, "alias": self.alias}

    def selection(self) -> "StageSelection":
        """The stages to run."""
        from medar.recipes.plan import StageSelection

        return StageSelection(first=self.from_, last=self.until, forced=tuple(self.force or ()))

    def execute(self, recipe: "Recipe", results: str) -> None:
        """Run a recipe, or print its plan.

        Args:
            recipe: the recipe.
            results: where its results are, as the end of a sentence.
        """
        if self.dry_run:
            _print_plan(recipe, self.selection(), json=self.json)
            return
        with self._use_cluster(recipe):
            steps = recipe.run(self.selection())
        if steps:  # empty in processes that only train
            _print_results(recipe, [step.stage.name for step in steps], results, json=self.json)

    def _use_cluster(self, recipe: "Recipe") -> AbstractContextManager[None]:
        """Where stages that work case by case run; processes that only train need no cluster."""
        from medar.training.distributed import current_ranks

        if self.cluster.address is None or not current_ranks().is_rank_zero:
            return nullcontext()
        return self.cluster.use(recipe.settings.data.path, out=recipe.out)


OPTIONS = Options()


@app.command
def synthesis(
    config: str | None = None,
    /,
    *overrides: Overrides,
    out: Path,
    data: Path | None = None,
    options: Options = OPTIONS,
) -> None:
    """Train a tokenizer and a generator on a data set, synthesize volumes, evaluate and report.

    The same command resumes an interrupted run, skips stages that are done, and runs those again
    whose settings, data or code have changed; old results are moved to OUT/old. Under torchrun,
    trainings use all processes.

    Stages: prepare, tokenizer, detail, tokens, generator, synthesize, evaluate, report.

    Parameters
    ----------
    config
        A YAML file, such as the config.yaml of an earlier run, or a name that `medar configs`
        lists, such as hippocampus_mr (docs/reference/recipes.md). Default: OUT/config.yaml of an
        earlier run, else settings that are chosen from the data, the machine and --minutes.
    overrides
        Values that replace the YAML's: tokenizer.training.steps=100, samples.n=8.
    out
        Folder of the run.
    data
        The data set: folder, dataset.json, JSONL manifest; default: the YAML's data.path.
    """
    from medar.recipes.data import resolve_data
    from medar.recipes.settings import SynthesisSettings
    from medar.recipes.synthesis import synthesis_recipe
    from medar.records import SAMPLES

    settings = options.apply(_load(SynthesisSettings, config, overrides, out, data, options), data)
    resolved, message = resolve_data(
        settings.data, out, settings.plan_values(), settings.evaluation.split
    )
    _note_on_rank_zero(message)
    recipe = synthesis_recipe(replace(settings, data=resolved), out, **options.tracking())
    options.execute(recipe, f"synthetic volumes are in {out / SAMPLES}")


@app.command
def segmentation(
    config: str | None = None,
    /,
    *overrides: Overrides,
    out: Path,
    data: Path | None = None,
    labels: str | None = None,
    options: Options = OPTIONS,
) -> None:
    """Pretrain and train a segmentation network, predict the test split, evaluate and report.

    The same command resumes an interrupted run, skips stages that are done, and runs those again
    whose settings, data or code have changed; old results are moved to OUT/old. Under torchrun,
    trainings use all processes.

    Stages: prepare, tokenizer, pretrain, train, predict, evaluate, report.

    Parameters
    ----------
    config
        A YAML file, such as the config.yaml of an earlier run, or a name that `medar configs`
        lists, such as segment_hippocampus_mr (docs/reference/recipes.md). Default: OUT/config.yaml
        of an earlier run, else settings that are chosen from the data, the machine and --minutes.
    overrides
        Values that replace the YAML's: segmentation.training.steps=100, pretrain=null.
    out
        Folder of the run.
    data
        The data set: folder, dataset.json, JSONL manifest; default: the YAML's data.path.
    labels
        Fraction of the training subjects whose labels are used, such as 10%; default: the YAML's.
        Pretraining uses all training volumes.
    """
    from medar.recipes.data import resolve_data
    from medar.recipes.segmentation import segmentation_recipe
    from medar.recipes.settings import SegmentationRecipeSettings
    from medar.records import LABEL_MAPS
    from medar.segmentation.settings import parse_fraction

    settings = _load(SegmentationRecipeSettings, config, overrides, out, data, options)
    if labels is not None:
        part = settings.segmentation.with_label_fraction(parse_fraction(labels))
        settings = replace(settings, segmentation=part)
    settings = options.apply(settings, data)
    resolved, message = resolve_data(
        settings.data, out, settings.plan_values(), settings.evaluation.split, labelled=True
    )
    _note_on_rank_zero(message)
    recipe = segmentation_recipe(replace(settings, data=resolved), out, **options.tracking())
    options.execute(recipe, f"label maps are in {out / LABEL_MAPS}")


def _load(
    kind: "type[Settings]",
    config: str | None,
    overrides: tuple[str, ...],
    out: Path,
    data: Path | None,
    options: Options,
) -> "Settings":
    """The settings of a recipe: from a configuration, an earlier run in OUT, or chosen.

    Raises:
        MedarError: see `load_recipe` and `chosen_settings`.
    """
    from medar.recipes.chosen import chosen_settings
    from medar.recipes.configs import find_config
    from medar.recipes.settings import DataSettings, load_recipe
    from medar.records import CONFIG_FILE, is_run

    if config is not None and "=" in config:  # there is no configuration, only overrides
        overrides, config = (config, *overrides), None
    changes = assignments(overrides)
    if config is not None:
        return load_recipe(kind, find_config(config, "recipes"), changes)
    earlier = out / CONFIG_FILE
    if is_run(out) and earlier.exists():
        _note_on_rank_zero(f"settings of {earlier}")
        return load_recipe(kind, earlier, changes)
    named = DataSettings(path=data, modality=options.modality)
    settings, lines = chosen_settings(kind, named, options.max_minutes, changes)
    for line in lines:
        note(line)
    if not options.dry_run:
        note(f"all settings are in {earlier}: edit it and run the same command to change them")
    return settings


def _note_on_rank_zero(message: str) -> None:
    from medar.training.distributed import current_ranks

    if message and current_ranks().is_rank_zero:
        note(message)


def _print_plan(recipe: "Recipe", selection: "StageSelection", *, json: bool) -> None:
    steps = recipe.plan(selection)
    rows = list(zip(steps, recipe.estimates(steps), strict=True))
    if json:
        plan = [
            {"stage": s.stage.name, "action": s.action, "why": s.why, **vars(e)} for s, e in rows
        ]
        print_json({"out": recipe.out, "stages": plan})
        return
    print_table(
        ("stage", "action", "time", "why"),
        ((s.stage.name, s.action, e.time, s.why) for s, e in rows),
    )


def _set_aside(recipe: "Recipe") -> tuple[str, ...]:
    """A line on the cases that could not be prepared, if there are any."""
    from medar.data.prepared import FAILED_FILE
    from medar.records import PREPARED

    record = recipe.records.read("prepare")
    facts = {} if record is None or record.status != "done" else record.facts
    counts = {"case": facts.get("set_aside"), "label": facts.get("labels_set_aside")}
    words = " and ".join(format_count(n, what) for what, n in counts.items() if n)
    reasons = recipe.out / PREPARED / FAILED_FILE
    return (f"set aside, because they cannot be used: {words}; read {reasons}",) if words else ()


def _print_results(recipe: "Recipe", names: list[str], results: str, *, json: bool) -> None:
    from medar.recipes.budget import duration
    from medar.report.folder import RunFolder
    from medar.report.render import HTML_FILE
    from medar.report.run import find_verdict

    out, aside = recipe.out, _set_aside(recipe)
    records = {name: one for name in names if (one := recipe.records.read(name)) is not None}
    page = out / HTML_FILE if "report" in records else None  # else it is of an earlier run
    judged = find_verdict(RunFolder(out)) if page is not None else None
    if json:
        stages = {
            name: {"status": r.status, "seconds": r.seconds, "peak_mib": r.peak_mib, **r.facts}
            for name, r in records.items()
        }
        verdict = None if judged is None else vars(judged)
        print_json({"out": out, "stages": stages, "report": page, "verdict": verdict})
        note(*aside)
        return
    lines = {name: f"{r.status}, {duration(r.seconds)}" for name, r in records.items()}
    print_pairs(str(out), lines)
    if page is not None:
        print(f"read {page}; {results}")
    if judged is not None:
        print(f"{judged.grade}: {judged.reason}")
        print(f"next: {judged.command}")
    note(*aside)
