"""The recipe from a folder of volumes, some of them labelled, to a segmentation network.

    prepare -> tokenizer -> pretrain -> train -> predict -> evaluate -> report

Each stage is a function that calls the library; `segmentation_recipe` declares what it needs and
what its result depends on. Without `pretrain` in the settings the network is trained from scratch,
and there is no tokenizer. Run it with `medar run segmentation`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.recipes.common import (
    drop_none,
    limits_of,
    log_prepared,
    prepare_stage,
    report_stage,
    resume_key,
    tokenizer_stage,
    training_facts,
)
from medar.recipes.data import files_result, folder_digest
from medar.recipes.recipe import Recipe
from medar.recipes.settings import SegmentationRecipeSettings
from medar.recipes.stage import Facts, Stage, StageContext
from medar.records import (
    EVALUATION,
    LABEL_MAPS,
    PREPARED,
    PRETRAINED,
    SEGMENTATION,
    SEGMENTER,
    TOKENIZER,
)
from medar.settings import to_dict

if TYPE_CHECKING:
    from medar.evaluation.segmentation import SegmentationReport
    from medar.evaluation.segmentation.worst import WorstCases


def segmentation_recipe(settings: SegmentationRecipeSettings, out: Path, **options: Any) -> Recipe:
    """The recipe for a folder.

    Args:
        settings: of the recipe.
        out: the folder.
        options: `tracked`, `register` and `alias` of `Recipe`.
    """
    return Recipe(
        name=SEGMENTATION,
        out=out,
        settings=settings,
        stages=segmentation_stages(settings, out),
        max_minutes=settings.max_minutes,
        device=settings.segmentation.training.device,
        **options,
    )


def segmentation_stages(settings: SegmentationRecipeSettings, out: Path) -> tuple[Stage, ...]:
    """The stages in order."""
    values, plan, weights = to_dict(settings), settings.plan_values(), settings.budget_weights
    split = settings.evaluation.split
    # Memory and pace of prediction change no result.
    prediction = {name: values["prediction"][name] for name in ("overlap", "mirrors", "precision")}
    stages = [prepare_stage(settings.data, plan, split, out, weights.prepare, labelled=True)]
    if settings.needs_tokenizer:
        assert settings.tokenizer is not None
        stages.append(tokenizer_stage(settings.tokenizer, weights.tokenizer))
    if settings.pretrain is not None:
        stages.append(
            Stage(
                name="pretrain",
                folder=PRETRAINED,
                run=partial(_pretrain, settings),
                result=partial(files_result, pattern="model/*"),
                settings=resume_key(settings.pretrain),
                needs=tuple(stage.name for stage in stages),
                training=limits_of(settings.pretrain.training),
                budget_weight=weights.pretrain,
            )
        )
    stages += [
        Stage(
            name="train",
            folder=SEGMENTER,
            run=partial(_train, settings),
            result=partial(files_result, pattern="model/*"),
            settings=resume_key(settings.segmentation),
            inputs=partial(folder_digest, "data.synthetic", settings.synthetic, out),
            needs=("prepare", *(["pretrain"] if settings.pretrain else [])),
            training=limits_of(settings.segmentation.training),
            model="segmenter",
            budget_weight=weights.train,
        ),
        Stage(
            name="predict",
            folder=LABEL_MAPS,
            run=partial(_predict, settings),
            result=partial(files_result, pattern="*.nii.gz"),
            settings={"split": split, **prediction},
            needs=("prepare", "train"),
            budget_weight=weights.predict,
        ),
        Stage(
            name="evaluate",
            folder=EVALUATION,
            run=partial(_evaluate, settings, _write_evaluation),
            settings={**values["evaluation"], **prediction},
            needs=("prepare", "train", "predict"),
            budget_weight=weights.evaluate,
        ),
    ]
    return (*stages, report_stage([stage.name for stage in stages], weights.report))


def _pretrain(settings: SegmentationRecipeSettings, context: StageContext) -> Facts:
    """Train the backbone on volumes without labels."""
    from medar.segmentation.pretext.training import pretrain_backbone

    assert settings.pretrain is not None
    pretraining = settings.pretrain.within(context.minutes)
    if settings.needs_tokenizer:
        pretraining = pretraining.with_tokenizer(str(context.out / TOKENIZER))
    log_prepared(context, "training")
    data = context.out / PREPARED
    return training_facts(pretrain_backbone(pretraining, data, context.folder, context.tracker))


def _train(settings: SegmentationRecipeSettings, context: StageContext) -> Facts:
    """Train the network on labels, from the pretrained backbone if there is one."""
    from medar.segmentation.training import train_segmenter

    log_prepared(context, "training")
    outcome = train_segmenter(
        settings.segmentation.within(context.minutes),
        context.out / PREPARED,
        context.folder,
        context.tracker,
        pretrained=None if settings.pretrain is None else context.out / PRETRAINED,
    )
    return training_facts(outcome)


def _predict(settings: SegmentationRecipeSettings, context: StageContext) -> Facts:
    """Segment the cases of the evaluated split, labelled or not, each on its own grid."""
    from medar.segmentation.files import segment_cases
    from medar.segmentation.segmenter import Segmenter

    model = Segmenter.from_pretrained(
        context.out / SEGMENTER, settings.segmentation.training.device
    )
    maps = segment_cases(
        model,
        context.out / PREPARED,
        settings.evaluation.split,
        context.folder,
        settings.prediction,
    )
    return {"label_maps": len(maps)}


def _evaluate(
    settings: SegmentationRecipeSettings,
    write: "Callable[[SegmentationReport, WorstCases, StageContext], None]",
    context: StageContext,
) -> Facts:
    """Compare the label maps of `predict` with the truth.

    Label maps hold no probabilities: the network predicts once more for its calibration alone.
    """
    from medar.evaluation.segmentation import evaluate_segmentation
    from medar.evaluation.segmentation.predictors import FilesPredictor, NetworkPredictor
    from medar.evaluation.segmentation.worst import WorstCases
    from medar.segmentation.segmenter import Segmenter

    log_prepared(context, "evaluation")
    model = Segmenter.from_pretrained(
        context.out / SEGMENTER, settings.segmentation.training.device
    )
    network = NetworkPredictor(model, settings=settings.prediction)
    worst = WorstCases()
    report = evaluate_segmentation(
        FilesPredictor(context.out / LABEL_MAPS, "model", network=network),
        context.out / PREPARED,
        settings.evaluation.split,
        tolerance=settings.evaluation.tolerance,
        seed=settings.evaluation.seed,
        worst=worst,
    )
    write(report, worst, context)
    means = ("dice_mean", "hd95_mean", "nsd_mean")
    labels = {f"dice/{name}": value for name, value in report.dice.items()}
    return {
        "cases": report.cases,
        **drop_none({name: getattr(report.models[0], name) for name in means}),
        **drop_none(labels),
    }


def _write_evaluation(
    report: "SegmentationReport", worst: "WorstCases", context: StageContext
) -> None:
    """Write the report, its page and its table."""
    from medar.report.artifacts import write_segmentation

    write_segmentation(report, worst, context.folder)
    context.log_artifact(context.folder)
