"""The stages of recipes that others may share: `prepare`, `tokenizer`, `detail`, `report`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.devices import DeviceName
from medar.errors import MedarError
from medar.recipes.data import (
    check_cases,
    copy_hashes,
    data_digests,
    file_digests,
    files_result,
    manifest_in,
    prepared_result,
)
from medar.recipes.settings import DataSettings
from medar.recipes.stage import Facts, Stage, StageContext, TrainingEstimate
from medar.records import DETAIL, EVALUATION, PREPARED, TOKENIZER
from medar.settings import to_dict
from medar.tokenizer.settings import DetailSettings, TokenizerSettings
from medar.training.settings import TrainingSettings

if TYPE_CHECKING:
    from medar.evaluation.reconstruction.cases import EvaluatedSplit
    from medar.training import Outcome

FIDELITY = ("psnr", "ssim", "codebook_usage")
REALISM = ("power_ratio", "grid_artifact", "frechet", "frechet_floor", "frechet_samples")
"""Values of a `ReconstructionReport` that stages record: without the detail decoder, and with it if
there is one."""

Measure = Callable[[StageContext], Facts]
"""Measures and draws the result of a stage without changing it; the code does not count."""


def prepare_stage(
    data: DataSettings,
    plan: Mapping[str, Any],
    evaluated: str,
    out: Path,
    budget_weight: float,
    *,
    labelled: bool = False,
    smallest: int = 1,
) -> Stage:
    """Measure a data set, derive the plan, and prepare every case by it.

    Args:
        data: names the data set.
        plan: values of the plan in the settings.
        evaluated: the split that the recipe evaluates its models on.
        out: the recipe's folder.
        budget_weight: of the stage.
        labelled: whether models need labels.
        smallest: voxels that the volumes of the plan must have along each axis.
    """
    values = to_dict(data)
    relevant = {name: values[name] for name in ("modality", "seed", "voxels")}
    return Stage(
        name="prepare",
        folder=PREPARED,
        run=partial(_prepare, data, plan, evaluated, labelled, smallest),
        result=prepared_result,
        settings={"data": relevant, "plan": dict(plan)},
        inputs=partial(data_digests, data, out),
        budget_weight=budget_weight,
    )


def _prepare(
    data: DataSettings,
    values: Mapping[str, Any],
    evaluated: str,
    labelled: bool,
    smallest: int,
    context: StageContext,
) -> Facts:
    from medar.data.planning import resolve_plan
    from medar.data.prepare import prepare
    from medar.data.prepared import PLAN_FILE, Prepared

    folder = context.folder
    manifest = manifest_in(data, context.out)
    copy_hashes(context.out, folder)
    context.log_dataset(manifest.root.name, manifest.digest, manifest.root, "preparation")
    plan = resolve_plan(
        manifest,
        folder,
        workers=data.workers,
        voxels=None if (folder / PLAN_FILE).exists() else data.voxels,
        overrides=dict(values),
    )
    if min(plan.size) < smallest:
        sides = "x".join(map(str, plan.size))
        raise MedarError(
            f"{manifest.root}: volumes of {sides} voxels; evaluating synthetic volumes needs at "
            f"least {smallest} along each axis: set plan.spacing and plan.size"
        )
    done = prepare(manifest, plan, folder, workers=data.workers)
    context.log_artifact(folder / PLAN_FILE)
    prepared = Prepared(folder)
    cases = [prepared[index] for index in range(len(prepared))]
    return {
        "cases": done.made + done.kept,
        "set_aside": len(done.failed),
        **({"labels_set_aside": len(done.unlabelled)} if done.unlabelled else {}),
        **check_cases(folder, cases, evaluated, labelled=labelled),
        "voxels": "x".join(map(str, plan.size)),
        "spacing": "x".join(f"{side:g}" for side in plan.spacing),
    }


def tokenizer_stage(
    settings: TokenizerSettings,
    budget_weight: float,
    *,
    evaluated: "EvaluatedSplit" = "val",
    frechet_samples: int | None = None,
) -> Stage:
    """Train a tokenizer on the prepared cases, and evaluate it.

    Args:
        settings: of the training.
        budget_weight: of the stage.
        evaluated: the split to reconstruct.
        frechet_samples: number of volumes behind its Frechet distance; default: all of the split.
    """
    measure = partial(
        _evaluate,
        device=settings.training.device,
        evaluated=evaluated,
        frechet_samples=frechet_samples,
        facts=(*FIDELITY, *REALISM),
    )
    return Stage(
        name="tokenizer",
        folder=TOKENIZER,
        run=partial(_train_tokenizer, settings, measure),
        result=partial(files_result, pattern="model/*"),
        settings=resume_key(settings),
        inputs=partial(file_digests, {"perceptual_file": settings.loss.perceptual_file}),
        needs=("prepare",),
        training=limits_of(settings.training),
        model="tokenizer",
        budget_weight=budget_weight,
    )


def _train_tokenizer(settings: TokenizerSettings, measure: Measure, context: StageContext) -> Facts:
    from medar.tokenizer.training import train_tokenizer

    data = context.out / PREPARED
    log_prepared(context, "training")
    outcome = train_tokenizer(
        settings.within(context.minutes), data, context.folder, context.tracker
    )
    if not context.is_rank_zero:
        return {}
    return {**training_facts(outcome), **measure(context)}


def detail_stage(
    settings: DetailSettings,
    budget_weight: float,
    *,
    evaluated: "EvaluatedSplit" = "val",
    frechet_samples: int | None = None,
) -> Stage:
    """Train a detail decoder for the tokenizer, and evaluate it; see `tokenizer_stage`."""
    measure = partial(
        _evaluate,
        device=settings.training.device,
        evaluated=evaluated,
        frechet_samples=frechet_samples,
        facts=REALISM,
        by_scale=False,
    )
    return Stage(
        name="detail",
        folder=DETAIL,
        run=partial(_train_detail, settings, measure),
        result=partial(files_result, pattern="model/**/*"),
        settings=resume_key(settings),
        needs=("prepare", "tokenizer"),
        training=limits_of(settings.training),
        model="tokenizer",
        budget_weight=budget_weight,
    )


def _train_detail(settings: DetailSettings, measure: Measure, context: StageContext) -> Facts:
    from medar.tokenizer.detail_training import train_detail

    log_prepared(context, "training")
    outcome = train_detail(
        settings.within(context.minutes),
        context.out / TOKENIZER,
        context.out / PREPARED,
        context.folder,
        context.tracker,
    )
    if not context.is_rank_zero:
        return {}
    return {**training_facts(outcome), **measure(context)}


def _evaluate(
    context: StageContext,
    *,
    device: DeviceName,
    evaluated: "EvaluatedSplit",
    frechet_samples: int | None,
    facts: tuple[str, ...],
    by_scale: bool = True,
) -> Facts:
    """Evaluate the tokenizer that the stage trained, or trained a detail decoder for."""
    from medar.evaluation.reconstruction import evaluate_tokenizer
    from medar.report.artifacts import write_reconstruction
    from medar.tokenizer.tokenizer import Tokenizer

    data, out = context.out / PREPARED, context.folder / EVALUATION
    tokenizer = Tokenizer.from_pretrained(context.folder, device)
    report = evaluate_tokenizer(
        tokenizer, data, evaluated, by_scale=by_scale, frechet_samples=frechet_samples
    )
    write_reconstruction(report, tokenizer, data, out)
    context.log_artifact(out)
    return drop_none({name: getattr(report, name) for name in facts})


def report_stage(needs: Sequence[str], budget_weight: float) -> Stage:
    """Write the report of the run: one page with settings and results."""
    return Stage(
        name="report",
        folder="report",
        files=("report.html", "report.md"),
        run=_write_report,
        describes_needs=True,
        needs=tuple(needs),
        budget_weight=budget_weight,
    )


def _write_report(context: StageContext) -> Facts:
    from medar.report.run import write_report

    page = write_report(context.out)
    context.log_artifact(page)
    context.log_artifact(page.with_suffix(".md"))
    return {"kib": round(page.stat().st_size / 1024)}


def log_prepared(context: StageContext, purpose: str) -> None:
    """Record the prepared data set among the inputs of a stage's run."""
    from medar.data.prepared import Prepared

    data = context.out / PREPARED
    context.log_dataset(PREPARED, Prepared(data).digest, data, purpose)


def training_facts(outcome: "Outcome") -> dict[str, float]:
    """Facts of a training: last step, seconds, and the best validation value if there is one."""
    facts = {"step": outcome.step, "training_seconds": round(outcome.elapsed, 1)}
    return {**facts, **drop_none({"validation": outcome.best})}


def limits_of(training: TrainingSettings) -> TrainingEstimate:
    """The limits of a training."""
    return TrainingEstimate(steps=training.steps, minutes=training.minutes)


def resume_key(settings: Any) -> dict[str, Any]:
    """Settings that a training's result depends on, without logging, loading and file names."""
    values = to_dict(settings)
    values["training"] = settings.training.resume_key()
    values["data"].pop("workers")
    values.get("loss", {}).pop("perceptual_file", None)  # its content counts
    (values["data"].get("synthetic") or {}).pop("folder", None)  # its content counts
    values.pop("tokens", None)  # of a generator: the stage `tokens` depends on them
    return values


def drop_none(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
