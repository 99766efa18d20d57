"""The recipe from a folder of volumes to synthetic ones.

    prepare -> tokenizer -> detail -> tokens -> generator -> synthesize -> evaluate -> report

Each stage is a function that calls the library; `synthesis_recipe` declares what it needs and what
its result depends on. Run it with `medar run synthesis`.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.recipes.common import (
    detail_stage,
    drop_none,
    limits_of,
    log_prepared,
    prepare_stage,
    report_stage,
    resume_key,
    tokenizer_stage,
    training_facts,
)
from medar.recipes.data import file_digests, files_result, tokens_result
from medar.recipes.recipe import Recipe
from medar.recipes.settings import SynthesisSettings
from medar.recipes.stage import Facts, Stage, StageContext
from medar.records import (
    DETAIL,
    EVALUATION,
    GENERATOR,
    PREPARED,
    SAMPLES,
    SYNTHESIS,
    TOKENIZER,
    TOKENS,
    Records,
)
from medar.settings import to_dict

if TYPE_CHECKING:
    from torch import Tensor

    from medar.data.plan import Plan
    from medar.evaluation.generation import GenerationReport
    from medar.synthesis.synthesizer import Synthesizer

SHEET_VOLUMES = 16
"""Most samples on the contact sheet."""


def synthesis_recipe(settings: SynthesisSettings, out: Path, **options: Any) -> Recipe:
    """The recipe for a folder.

    Args:
        settings: of the recipe.
        out: the folder.
        options: `tracked`, `register` and `alias` of `Recipe`.
    """
    return Recipe(
        name=SYNTHESIS,
        out=out,
        settings=settings,
        stages=synthesis_stages(settings, out),
        max_minutes=settings.max_minutes,
        device=settings.generator.training.device,
        **options,
    )


def synthesis_stages(settings: SynthesisSettings, out: Path) -> tuple[Stage, ...]:
    """The stages in order."""
    from medar.evaluation.extractors.handcrafted import SMALLEST

    values, plan, weights = to_dict(settings), settings.plan_values(), settings.budget_weights
    # Reconstructions are judged on the cases, and at the number of volumes, of the samples.
    judged: dict[str, Any] = {
        "evaluated": settings.evaluation.split,
        "frechet_samples": settings.samples.n,
    }
    detail = []
    if settings.detail is not None:
        detail.append(detail_stage(settings.detail, weights.detail, **judged))
    stages = (
        prepare_stage(
            settings.data,
            plan,
            settings.evaluation.split,
            out,
            weights.prepare,
            smallest=SMALLEST,
        ),
        tokenizer_stage(settings.tokenizer, weights.tokenizer, **judged),
        *detail,
        Stage(
            name="tokens",
            folder=TOKENS,
            run=partial(_encode, settings),
            result=tokens_result,
            settings={**values["generator"]["tokens"], "map": settings.generator.condition.map},
            needs=("prepare", "detail" if detail else "tokenizer"),
            budget_weight=weights.tokens,
        ),
        Stage(
            name="generator",
            folder=GENERATOR,
            run=partial(_train_generator, settings, _preview),
            result=partial(files_result, pattern="model/**/*"),
            settings=resume_key(settings.generator),
            needs=("tokens",),
            training=limits_of(settings.generator.training),
            model="generator",
            budget_weight=weights.generator,
        ),
        Stage(
            name="synthesize",
            folder=SAMPLES,
            run=partial(_synthesize, settings, _draw_samples),
            result=partial(files_result, pattern="sample_*"),
            settings={k: v for k, v in values["samples"].items() if k != "batch_size"},
            needs=("generator", *(stage.name for stage in detail)),
            budget_weight=weights.synthesize,
        ),
        Stage(
            name="evaluate",
            folder=EVALUATION,
            run=partial(_evaluate, settings, _draw_evaluation),
            settings={k: v for k, v in values["evaluation"].items() if k != "weights"},
            inputs=partial(file_digests, {"weights": settings.evaluation.weights}),
            needs=("prepare", "synthesize"),
            budget_weight=weights.evaluate,
        ),
    )
    return (*stages, report_stage([stage.name for stage in stages], weights.report))


def _encode(settings: SynthesisSettings, context: StageContext) -> Facts:
    """Encode every case, and augmented variants of it, as tokens."""
    from medar.tokenizer.encoding import encode_data_set
    from medar.tokenizer.tokens import TokenIndex

    log_prepared(context, "encoding")
    done = encode_data_set(
        context.out / PREPARED,
        context.folder,
        context.out / (TOKENIZER if settings.detail is None else DETAIL),
        **settings.generator.encoding(),
    )
    for case, reason in done.failed.items():
        warnings.warn(f"{case} is skipped: {reason}", stacklevel=2)
    index = TokenIndex.load(context.folder)
    return {
        "cases": len(index.cases),
        "variants": index.variants,
        "tokens_per_volume": index.schedule.length,
        "codebook_size": index.codebook_size,
    }


def _train_generator(
    settings: SynthesisSettings,
    make_preview: "Callable[[Path, Path], Callable[[int, Tensor], None]]",
    context: StageContext,
) -> Facts:
    """Train the generator on the tokens."""
    from medar.generator.training import train_generator
    from medar.tokenizer.tokens import TokenDataset

    data = context.out / TOKENS
    context.log_dataset(TOKENS, TokenDataset(data).digest, data, "training")
    outcome = train_generator(
        settings.generator.within(context.minutes),
        data,
        context.folder,
        context.tracker,
        preview=make_preview(data, context.folder),
    )
    return training_facts(outcome)


def _preview(tokens: Path, out: Path) -> "Callable[[int, Tensor], None]":
    from medar.report.artifacts import training_preview

    return training_preview(tokens, out)


def _synthesize(
    settings: SynthesisSettings,
    draw: "Callable[[SynthesisSettings, Synthesizer, StageContext], None]",
    context: StageContext,
) -> Facts:
    """Synthesize volumes, and draw them."""
    from medar.synthesis.samples import write_samples
    from medar.synthesis.synthesizer import Synthesizer, seeds_from

    samples, device = settings.samples, settings.generator.training.device
    synthesizer = Synthesizer.from_pretrained(context.out, device)
    job, seeds = synthesizer.job(_request(settings)), seeds_from(samples.seed, samples.n)
    began = time.monotonic()
    images, made = write_samples(
        context.folder, synthesizer, job, seeds, batch_size=samples.batch_size
    )
    seconds = (time.monotonic() - began) / made if made else None
    draw(settings, synthesizer, context)
    return {"volumes": len(images), **drop_none({"seconds_per_volume": seconds})}


def _request(settings: SynthesisSettings) -> Any:
    from medar.synthesis.request import Request

    samples = settings.samples
    return Request(
        attributes=samples.attributes, modality=samples.modality, sampling=samples.sampling
    )


def _draw_samples(
    settings: SynthesisSettings, synthesizer: "Synthesizer", context: StageContext
) -> None:
    """Draw a contact sheet, and a few volumes after each scale."""
    from medar.evaluation.generation.files import generated_files
    from medar.report.artifacts import write_samples_sheet
    from medar.report.montages import ScalePreview
    from medar.synthesis.samples import PREVIEW, SHEET
    from medar.synthesis.synthesizer import seeds_from

    samples, folder, plan = settings.samples, context.folder, synthesizer.plan
    modality = samples.modality or plan.sole_modality
    images = [file.image for file in generated_files(folder)[:SHEET_VOLUMES]]
    write_samples_sheet(images, folder / SHEET, len(plan.channels) > 1, modality)
    # The same volumes again: a sample depends on its seed alone.
    seeds = seeds_from(samples.seed, samples.n)[: samples.previews]
    job = synthesizer.job(_request(settings))
    for _ in synthesizer.run(job, seeds, preview=ScalePreview(folder / PREVIEW)):
        pass
    for name in (SHEET, PREVIEW):
        context.log_artifact(folder / name)


def _evaluate(
    settings: SynthesisSettings,
    draw: "Callable[[GenerationReport, Plan, StageContext], None]",
    context: StageContext,
) -> Facts:
    """Compare the volumes with real ones: fidelity, diversity, copies."""
    from medar.data.prepared import Prepared
    from medar.devices import resolve_device
    from medar.evaluation.generation import evaluate_generation
    from medar.evaluation.generation.files import generated_files, read_generated

    data = Prepared(context.out / PREPARED)
    log_prepared(context, "evaluation")
    samples = Records(context.out).read("synthesize")
    peak = samples.peak_mib if samples else None
    report = evaluate_generation(
        read_generated(generated_files(context.out / SAMPLES), data.plan),
        data.folder,
        split=settings.evaluation.split,
        extractors=settings.evaluation.extractors,
        weights=settings.evaluation.weights,
        seed=settings.evaluation.seed,
        device=resolve_device(settings.generator.training.device),
        seconds_per_volume=samples.facts.get("seconds_per_volume") if samples else None,
        peak_memory=int(peak * 2**20) if peak else None,
        turing=settings.evaluation.turing,
        from_files=True,
    )
    draw(report, data.plan, context)
    distances = {
        f"{metric}/{name}": getattr(values, metric)
        for name, values in report.distances.items()
        for metric in ("frechet", "frechet_floor", "frechet_samples", "kernel", "kernel_floor")
    }
    distances["grid_artifact"] = report.grid_artifact
    copies = {f"suspected_copies/{n}": len(m.suspects) for n, m in report.memorisation.items()}
    diversity = {"ms_ssim": report.ms_ssim, "ms_ssim_real": report.ms_ssim_real}
    turing = report.turing
    told = {"turing_auc": turing.auc, "turing_floor": turing.floor} if turing else {}
    return {**drop_none(distances), **drop_none(diversity), **drop_none(told), **copies}


def _draw_evaluation(report: "GenerationReport", plan: "Plan", context: StageContext) -> None:
    """Write report.json and the contact sheet of generated and real volumes."""
    from medar.evaluation.generation.files import generated_files, generated_volumes
    from medar.report.artifacts import drawn_volumes, write_generation

    turing = report.turing is not None
    files = generated_files(context.out / SAMPLES)[: drawn_volumes(turing)]
    pictures = generated_volumes(files, plan)
    write_generation(report, pictures, context.out / PREPARED, context.folder)
    for name in ("report.json", "contact_sheet.png", *(["turing.csv"] if turing else [])):
        context.log_artifact(context.folder / name)
