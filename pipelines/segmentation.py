"""From a folder of volumes, some of them labelled, to a segmentation network that is judged.

    prepare -> tokenizer -> pretrain -> train -> predict -> evaluate -> report

    python pipelines/segmentation.py --config configs/segment_hippocampus_mr.yaml --data PATH \\
        --out runs/x

Each stage below is a function that calls the library, and its declaration in `stages` says what it
needs and what it depends on; the first two are those of every recipe (medar/recipes/stages.py).
Without `pretrain` in the YAML the network is trained from scratch, and there is no tokenizer.
The same command goes on where it was interrupted, skips what is done and redoes what has changed
(docs/how-to/run-a-recipe.md).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

from medar.cli.main import run_app
from medar.cli.recipe import CALL, Call
from medar.cli.training import Overrides, assignments
from medar.errors import MedarError
from medar.recipes.inputs import check_data, folder_digest, manifest_of
from medar.recipes.outlook import pretraining_outlook, segmentation_outlook
from medar.recipes.recipe import Recipe
from medar.recipes.results import files_content
from medar.recipes.segmentation import SegmentationRecipeSettings
from medar.recipes.settings import load_recipe
from medar.recipes.stage import Facts, Stage, Work
from medar.recipes.stages import (
    EVALUATION,
    PREPARED,
    TOKENIZER,
    known,
    prepare_stage,
    resume_key,
    tokenizer_stage,
)
from medar.settings import to_dict

PRETRAINED, SEGMENTER, MAPS = "pretrained", "segmenter", "label_maps"
"""Where the stages leave what they make, below OUT."""


def pretrain(settings: SegmentationRecipeSettings, work: Work) -> Facts:
    """Train the backbone on volumes alone: no label is used."""
    from medar.data.prepared import Prepared
    from medar.segmentation.pretext.training import pretrain_backbone

    assert settings.pretrain is not None
    data, asked = work.out / PREPARED, settings.pretrain.within(work.minutes)
    if settings.wants_tokenizer:
        asked = asked.with_tokenizer(str(work.out / TOKENIZER))
    work.reads(PREPARED, Prepared(data).digest, data, "training")
    outcome = pretrain_backbone(asked, data, work.folder, work.tracker)
    return {
        "step": outcome.step,
        "training_seconds": round(outcome.elapsed, 1),
        **known({"validation": outcome.best}),
    }


def train(settings: SegmentationRecipeSettings, work: Work) -> Facts:
    """Train the network on labels, from the pretrained backbone if there is one."""
    from medar.data.prepared import Prepared
    from medar.segmentation.training import train_segmenter

    data, asked = work.out / PREPARED, settings.segmentation.within(work.minutes)
    start = None if settings.pretrain is None else work.out / PRETRAINED
    work.reads(PREPARED, Prepared(data).digest, data, "training")
    outcome = train_segmenter(asked, data, work.folder, work.tracker, pretrained=start)
    return {
        "step": outcome.step,
        "training_seconds": round(outcome.elapsed, 1),
        **known({"validation": outcome.best}),
    }


def predict(settings: SegmentationRecipeSettings, work: Work) -> Facts:
    """Segment the cases of the split that is judged, labelled or not, each on its own grid."""
    from medar.segmentation.cases import segment_cases
    from medar.segmentation.folder import load_segmenter

    model = load_segmenter(work.out / SEGMENTER, settings.segmentation.training.device)
    split = settings.evaluation.split
    made = segment_cases(model, work.out / PREPARED, split, work.folder, settings.prediction)
    return {"label_maps": len(made)}


def evaluate(settings: SegmentationRecipeSettings, work: Work) -> Facts:
    """Compare label maps of the network with the truth, and its chances with how often it is right.

    The network segments once more, as label maps keep no chances.
    """
    from medar.data.prepared import Prepared
    from medar.evaluation.segmentation import evaluate_segmentation
    from medar.evaluation.segmentation.worst import WorstCases
    from medar.report.artifacts import write_segmentation
    from medar.segmentation.folder import load_segmenter

    data = Prepared(work.out / PREPARED)
    work.reads(PREPARED, data.digest, data.folder, "evaluation")
    model = load_segmenter(work.out / SEGMENTER, settings.segmentation.training.device)
    worst = WorstCases()
    report = evaluate_segmentation(
        model,
        data.folder,
        settings.evaluation.split,
        tolerance=settings.evaluation.tolerance,
        seed=settings.evaluation.seed,
        settings=settings.prediction,
        worst=worst,
    )
    write_segmentation(report, worst, work.folder)
    work.shows(work.folder)
    first = report.models[0]
    means = {name: getattr(first, name) for name in ("dice_mean", "hd95_mean", "nsd_mean")}
    by_label = {f"dice/{name}": value for name, value in report.dice.items()}
    return {"cases": report.cases, **known(means), **known(by_label)}


def report(_: SegmentationRecipeSettings, work: Work) -> Facts:
    """One page that says what was done and what came out."""
    from medar.report.run import write_report

    page = write_report(work.out)
    work.shows(page)
    work.shows(page.with_suffix(".md"))
    return {"kib": round(page.stat().st_size / 1024)}


def stages(settings: SegmentationRecipeSettings, out: Path) -> tuple[Stage, ...]:
    """The recipe: what needs what, and what each result depends on."""
    values, plan = to_dict(settings), settings.plan_values()
    shares = values["shares"]
    judged = settings.evaluation.split
    how = {name: values["prediction"][name] for name in ("overlap", "mirrors")}
    first = [prepare_stage(settings.data, plan, judged, out, shares["prepare"], labelled=True)]
    if settings.wants_tokenizer:
        assert settings.tokenizer is not None
        first.append(tokenizer_stage(settings.tokenizer, plan, out, shares["tokenizer"]))
    if settings.pretrain is not None:
        first.append(
            Stage(
                name="pretrain",
                folder=PRETRAINED,
                run=partial(pretrain, settings),
                rooms=("data", "training", "tokenizer", "generator", "segmentation"),
                result=partial(files_content, pattern="model/*"),
                settings=resume_key(settings.pretrain),
                needs=tuple(stage.name for stage in first),
                training=True,
                share=shares["pretrain"],
                outlook=partial(pretraining_outlook, settings, out),
            )
        )
    last = (
        Stage(
            name="train",
            folder=SEGMENTER,
            run=partial(train, settings),
            rooms=("data", "training", "losses", "segmentation", *settings.layers),
            result=partial(files_content, pattern="model/*"),
            settings=resume_key(settings.segmentation),
            inputs=partial(folder_digest, "data.synthetic", settings.synthetic, out),
            needs=("prepare", *(["pretrain"] if settings.pretrain else [])),
            training=True,
            model="segmenter",
            share=shares["train"],
            outlook=partial(segmentation_outlook, settings, out),
        ),
        Stage(
            name="predict",
            folder=MAPS,
            run=partial(predict, settings),
            rooms=("volume", "data", "segmentation", *settings.layers),
            result=partial(files_content, pattern="*.nii.gz"),
            settings={"split": judged, **how},
            needs=("prepare", "train"),
            share=shares["predict"],
        ),
        Stage(
            name="evaluate",
            folder=EVALUATION,
            run=partial(evaluate, settings),
            rooms=("volume", "data", "segmentation", "evaluation", *settings.layers),
            settings={**values["evaluation"], **how},
            needs=("prepare", "train"),
            share=shares["evaluate"],
        ),
    )
    before = (*first, *last)
    return (
        *before,
        Stage(
            name="report",
            folder="report",
            files=("report.html", "report.md"),
            run=partial(report, settings),
            rooms=("report",),
            retells=True,
            needs=tuple(stage.name for stage in before),
            share=shares["report"],
        ),
    )


def recipe(settings: SegmentationRecipeSettings, out: Path, **options: Any) -> Recipe:
    """All of it, for a folder; options are those of `Recipe`."""
    return Recipe(
        name="segmentation",
        out=out,
        settings=settings,
        stages=stages(settings, out),
        max_minutes=settings.max_minutes,
        device=settings.segmentation.training.device,
        **options,
    )


app = App(
    name="segmentation.py",
    help="From volumes, some of them labelled, to a segmentation network, judged and reported.",
    suppress_keyboard_interrupt=False,
    help_format="markdown",
    default_parameter=Parameter(negative=()),
)


@app.default
def main(
    *overrides: Overrides,
    config: Path,
    out: Path,
    data: Path | None = None,
    labels: str | None = None,
    call: Call = CALL,
) -> None:
    """From volumes, some of them labelled, to a segmentation network, judged and reported.

    The same command goes on where it was interrupted, skips what is done, and redoes what has
    changed; what it replaces is moved to OUT/old.

    Stages: prepare, tokenizer, pretrain, train, predict, evaluate, report.

    Parameters
    ----------
    overrides
        Values that replace the YAML's: segmentation.training.steps=100, pretrain=null.
    config
        YAML, such as configs/segment_hippocampus_mr.yaml, or the config.yaml of an earlier run.
    out
        Folder of the run.
    data
        The data set: folder, dataset.json, JSONL manifest; default the YAML's data.path.
    labels
        Share of the training subjects whose labels are used, such as 10%; default the YAML's.
        Pretraining sees all training volumes.
    """
    settings = load_recipe(SegmentationRecipeSettings, config, assignments(overrides))
    if data is not None:
        settings = replace(settings, data=replace(settings.data, path=data))
    if labels is not None:
        from medar.segmentation.settings import share_of

        part = settings.segmentation.with_labels(share_of(labels))
        settings = replace(settings, segmentation=part)
    if call.max_minutes is not None:
        settings = replace(settings, max_minutes=call.max_minutes)
    settings = settings.placed()
    check_data(settings.data, out)
    made = recipe(settings, out, **call.tracking())
    if call.dry_run:
        manifest = manifest_of(settings.data)  # a plan of what never ran would not look at it
        if not any(case.label for case in manifest):
            raise MedarError(f"{manifest.root}: no labelled case; segmentation needs some")
    call.carry_out(made, f"label maps are in {out / MAPS}")


if __name__ == "__main__":
    run_app(app)
