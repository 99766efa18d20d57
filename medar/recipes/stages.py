"""The stages that recipes begin with: a data set prepared, a tokenizer trained and measured."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from medar.recipes.inputs import (
    cases_by_split,
    content_of,
    data_digests,
    lend_hashes,
    manifest_in,
)
from medar.recipes.outlook import tokenizer_outlook
from medar.recipes.results import files_content, prepared_content
from medar.recipes.settings import DataSettings
from medar.recipes.stage import Facts, Stage, Work
from medar.settings import to_dict
from medar.tokenizer.settings import TokenizerSettings

PREPARED, TOKENIZER = "prepared", "tokenizer"
"""Where these stages leave what they make, below OUT."""
EVALUATION = "evaluation"
"""Where an evaluation leaves its report, below OUT or below the stage's own folder."""


def prepare_stage(
    data: DataSettings,
    plan: Mapping[str, Any],
    judged: str,
    out: Path,
    share: float,
    *,
    labelled: bool = False,
) -> Stage:
    """Measure a data set, plan, bring every case to the plan's form.

    Args:
        data: names it.
        plan: values of the plan that are given.
        judged: the split that the recipe judges its models by.
        out: the recipe's folder.
        share: of a budget of time.
        labelled: models are trained and judged by labels.
    """
    matters = {name: to_dict(data)[name] for name in ("modality", "seed", "voxels")}
    return Stage(
        name="prepare",
        folder=PREPARED,
        run=partial(_prepare, data, plan, judged, labelled),
        rooms=("volume", "data"),
        result=prepared_content,
        settings={"data": matters, "plan": dict(plan)},
        inputs=partial(data_digests, data, out),
        share=share,
    )


def _prepare(
    data: DataSettings, given: Mapping[str, Any], judged: str, labelled: bool, work: Work
) -> Facts:
    from medar.data.layout import PLAN_FILE
    from medar.data.planning import plan_in_force
    from medar.data.prepare import prepare
    from medar.data.prepared import Prepared

    manifest = manifest_in(data, work.out, "prepare", work.folder)
    lend_hashes(work.out, work.folder)
    work.reads(manifest.root.name, manifest.digest, manifest.root, "preparation")
    plan = plan_in_force(
        manifest,
        work.folder,
        workers=data.workers,
        voxels=None if (work.folder / PLAN_FILE).exists() else data.voxels,
        overrides=dict(given),
    )
    done = prepare(manifest, plan, work.folder, workers=data.workers)
    work.shows(work.folder / "plan.yaml")
    return {
        "cases": done.made + done.kept,
        "set_aside": len(done.failed),
        **cases_by_split(Prepared(work.folder), judged, labelled=labelled),
        "voxels": "x".join(map(str, plan.size)),
        "spacing": "x".join(f"{side:g}" for side in plan.spacing),
    }


def tokenizer_stage(
    settings: TokenizerSettings, plan: Mapping[str, Any], out: Path, share: float
) -> Stage:
    """Train a tokenizer on what `prepare_stage` left, and measure what it loses on validation.

    Args:
        settings: of the tokenizer.
        plan: values of the plan that are given.
        out: the recipe's folder.
        share: of a budget of time.
    """
    return Stage(
        name="tokenizer",
        folder=TOKENIZER,
        run=partial(_tokenizer, settings),
        rooms=("data", "training", "tokenizer"),
        result=partial(files_content, pattern="model/*"),
        settings=resume_key(settings),
        inputs=partial(content_of, {"perceptual_file": settings.loss.perceptual_file}),
        needs=("prepare",),
        training=True,
        model="tokenizer",
        share=share,
        outlook=partial(tokenizer_outlook, settings, plan, out),
    )


def _tokenizer(settings: TokenizerSettings, work: Work) -> Facts:
    from medar.data.prepared import Prepared
    from medar.evaluation.reconstruction import evaluate_tokenizer
    from medar.report.artifacts import write_reconstruction
    from medar.tokenizer.tokenizer import Tokenizer
    from medar.tokenizer.training import train_tokenizer

    data, asked = work.out / PREPARED, settings.within(work.minutes)
    work.reads(PREPARED, Prepared(data).digest, data, "training")
    outcome = train_tokenizer(asked, data, work.folder, work.tracker)
    if not work.first:
        return {}
    trained = Tokenizer.from_pretrained(work.folder, asked.training.device)
    report = evaluate_tokenizer(trained, data, "val")
    write_reconstruction(report, trained, data, work.folder / EVALUATION)
    work.shows(work.folder / EVALUATION)
    figures = ("psnr", "ssim", "power_ratio", "codebook_usage", "frechet", "frechet_floor")
    return {
        "step": outcome.step,
        "training_seconds": round(outcome.elapsed, 1),
        **known({name: getattr(report, name) for name in figures}),
    }


def resume_key(settings: Any) -> dict[str, Any]:
    """What a training's result depends on: not how often it is looked at, nor who loads."""
    values = to_dict(settings)
    values["training"] = settings.training.resume_key()
    values["data"].pop("workers")
    values.get("loss", {}).pop("perceptual_file", None)  # their content counts
    (values["data"].get("synthetic") or {}).pop("folder", None)
    values.pop("tokens", None)  # the stage `tokens` depends on them, and the generator on that
    return values


def known(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those figures that there are."""
    return {name: value for name, value in values.items() if value is not None}
