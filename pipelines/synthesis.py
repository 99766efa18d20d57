"""From a folder of volumes to synthetic ones: the whole of it, as one recipe.

    prepare -> tokenizer -> tokens -> generator -> synthesize -> evaluate -> report

    python pipelines/synthesis.py --config configs/hippocampus_mr.yaml --data PATH --out runs/x

Each stage below is a function that calls the library, and its declaration in `stages` says what it
needs and what it depends on; the first two are those of every recipe (medar/recipes/stages.py).
The same command goes on where it was interrupted, skips what is done and redoes what has changed
(docs/how-to/run-a-recipe.md).
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

from medar.cli.main import run_app
from medar.cli.recipe import CALL, Call
from medar.cli.training import Overrides, assignments
from medar.recipes.inputs import check_data, content_of, manifest_of
from medar.recipes.outlook import generator_outlook
from medar.recipes.recipe import Recipe
from medar.recipes.results import files_content, tokens_content
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
from medar.recipes.synthesis import SynthesisSettings
from medar.records import Records
from medar.settings import to_dict

TOKENS, GENERATOR, SAMPLES = "tokens", "generator", "samples"
"""Where the stages leave what they make, below OUT."""

DRAWN = 16
"""Samples on the contact sheet, at most."""


def tokens(settings: SynthesisSettings, work: Work) -> Facts:
    """Say every case, and augmented variants of it, in tokens."""
    from medar.data.prepared import Prepared
    from medar.generator.training import encoded_data
    from medar.tokenizer.tokens import TokenIndex

    data = work.out / PREPARED
    work.reads(PREPARED, Prepared(data).digest, data, "encoding")
    encoded_data(settings.generator, data, work.out / TOKENIZER, work.folder)
    about = TokenIndex.load(work.folder)
    return {
        "cases": len(about.cases),
        "variants": about.variants,
        "tokens_a_volume": about.schedule.length,
        "codes": about.codebook_size,
    }


def generator(settings: SynthesisSettings, work: Work) -> Facts:
    """Train the generator on the tokens."""
    from medar.generator.training import train_generator
    from medar.report.artifacts import training_preview
    from medar.tokenizer.tokens import TokenDataset

    data, asked = work.out / TOKENS, settings.generator.within(work.minutes)
    work.reads(TOKENS, TokenDataset(data).digest, data, "training")
    preview = training_preview(data, work.folder)
    outcome = train_generator(asked, data, work.folder, work.tracker, preview=preview)
    return {
        "step": outcome.step,
        "training_seconds": round(outcome.elapsed, 1),
        **known({"validation": outcome.best}),
    }


def synthesize(settings: SynthesisSettings, work: Work) -> Facts:
    """Make volumes, and draw a few after each scale."""
    from medar.report.artifacts import write_samples_sheet
    from medar.report.montages import ScalePreview
    from medar.synthesis.request import Request
    from medar.synthesis.samples import PREVIEW, SHEET, fill
    from medar.synthesis.synthesizer import Synthesizer, seeds_from

    asked, device = settings.samples, settings.generator.training.device
    maker = Synthesizer.from_pretrained(work.out / GENERATOR, device)
    request = Request(attributes=asked.attributes, modality=asked.modality, sampling=asked.sampling)
    job, seeds = maker.job(request), seeds_from(asked.seed, asked.n)
    began = time.monotonic()
    done = fill(work.folder, maker, job, seeds, batch_size=asked.batch_size)
    each = (time.monotonic() - began) / done.made if done.made else None
    modality = asked.modality or maker.plan.sole_modality
    several = len(maker.plan.channels) > 1
    write_samples_sheet(done.images[:DRAWN], work.folder / SHEET, several, modality)
    few = seeds[: asked.previews]  # the same volumes again: a sample depends on its seed alone
    for _ in maker.run(job, few, preview=ScalePreview(work.folder / PREVIEW)):
        pass
    for name in (SHEET, PREVIEW):
        work.shows(work.folder / name)
    return {"volumes": len(done.images), **known({"seconds_per_volume": each})}


def evaluate(settings: SynthesisSettings, work: Work) -> Facts:
    """Compare the volumes with real ones: likeness, diversity, copies."""
    from medar.data.prepared import Prepared
    from medar.devices import resolve_device
    from medar.evaluation.generation import evaluate_generation
    from medar.evaluation.generation.files import generated_files, generated_volumes, read_generated
    from medar.report.artifacts import CONTACT_SHEET_VOLUMES, write_generation

    data, asked = Prepared(work.out / PREPARED), settings.evaluation
    work.reads(PREPARED, data.digest, data.folder, "evaluation")
    files, made = generated_files(work.out / SAMPLES), Records(work.out).read("synthesize")
    peak = made.peak_mib if made else None
    report = evaluate_generation(
        read_generated(files, data.plan),
        data.folder,
        split=asked.split,
        extractors=asked.extractors,
        weights=asked.weights,
        seed=asked.seed,
        device=resolve_device(settings.generator.training.device),
        seconds_per_volume=made.facts.get("seconds_per_volume") if made else None,
        peak_memory=int(peak * 2**20) if peak else None,
    )
    shown = generated_volumes(files[:CONTACT_SHEET_VOLUMES], data.plan)
    write_generation(report, shown, data.folder, work.folder)
    for name in ("report.json", "contact_sheet.png"):
        work.shows(work.folder / name)
    distances = {
        f"{what}/{name}": getattr(one, what)
        for name, one in report.distances.items()
        for what in ("frechet", "frechet_floor", "kernel", "kernel_floor")
    }
    copies = {f"suspected_copies/{n}": len(a.suspects) for n, a in report.memorisation.items()}
    likeness = {"ms_ssim": report.ms_ssim, "ms_ssim_real": report.ms_ssim_real}
    return {**known(distances), **known(likeness), **copies}


def report(_: SynthesisSettings, work: Work) -> Facts:
    """One page that says what was done and what came out."""
    from medar.report.run import write_report

    page = write_report(work.out)
    work.shows(page)
    work.shows(page.with_suffix(".md"))
    return {"kib": round(page.stat().st_size / 1024)}


def stages(settings: SynthesisSettings, out: Path) -> tuple[Stage, ...]:
    """The recipe: what needs what, and what each result depends on."""
    values = to_dict(settings)
    shares = values["shares"]
    plan = settings.plan_values()
    return (
        prepare_stage(settings.data, plan, settings.evaluation.split, out, shares["prepare"]),
        tokenizer_stage(settings.tokenizer, plan, out, shares["tokenizer"]),
        Stage(
            name="tokens",
            folder=TOKENS,
            run=partial(tokens, settings),
            rooms=("data", "tokenizer"),
            result=tokens_content,
            settings={**values["generator"]["tokens"], "map": settings.generator.condition.map},
            needs=("prepare", "tokenizer"),
            share=shares["tokens"],
        ),
        Stage(
            name="generator",
            folder=GENERATOR,
            run=partial(generator, settings),
            rooms=("data", "training", "tokenizer", "generator"),
            result=partial(files_content, pattern="model/**/*"),
            settings=resume_key(settings.generator),
            needs=("tokens",),
            training=True,
            model="generator",
            share=shares["generator"],
            outlook=partial(generator_outlook, settings, out),
        ),
        Stage(
            name="synthesize",
            folder=SAMPLES,
            run=partial(synthesize, settings),
            rooms=("volume", "data", "tokenizer", "generator", "synthesis"),
            result=partial(files_content, pattern="sample_*"),
            settings={k: v for k, v in values["samples"].items() if k != "batch_size"},
            needs=("generator",),
            share=shares["synthesize"],
        ),
        Stage(
            name="evaluate",
            folder=EVALUATION,
            run=partial(evaluate, settings),
            rooms=("volume", "data", "evaluation"),
            settings={k: v for k, v in values["evaluation"].items() if k != "weights"},
            inputs=partial(content_of, {"weights": settings.evaluation.weights}),
            needs=("prepare", "synthesize"),
            share=shares["evaluate"],
        ),
        Stage(
            name="report",
            folder="report",
            files=("report.html", "report.md"),
            run=partial(report, settings),
            rooms=("report",),
            retells=True,
            needs=("prepare", "tokenizer", "tokens", "generator", "synthesize", "evaluate"),
            share=shares["report"],
        ),
    )


def recipe(settings: SynthesisSettings, out: Path, **options: Any) -> Recipe:
    """All of it, for a folder; options are those of `Recipe`."""
    return Recipe(
        name="synthesis",
        out=out,
        settings=settings,
        stages=stages(settings, out),
        max_minutes=settings.max_minutes,
        device=settings.generator.training.device,
        **options,
    )


app = App(
    name="synthesis.py",
    help="From a folder of volumes to synthetic ones, judged and reported, in one command.",
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
    call: Call = CALL,
) -> None:
    """From a folder of volumes to synthetic ones, judged and reported, in one command.

    The same command goes on where it was interrupted, skips what is done, and redoes what has
    changed; what it replaces is moved to OUT/old.

    Stages: prepare, tokenizer, tokens, generator, synthesize, evaluate, report.

    Parameters
    ----------
    overrides
        Values that replace the YAML's: tokenizer.training.steps=100, samples.n=8.
    config
        YAML, such as configs/hippocampus_mr.yaml, or the config.yaml of an earlier run.
    out
        Folder of the run.
    data
        The data set: folder, dataset.json, JSONL manifest; default the YAML's data.path.
    """
    settings = load_recipe(SynthesisSettings, config, assignments(overrides))
    if data is not None:
        settings = replace(settings, data=replace(settings.data, path=data))
    if call.max_minutes is not None:
        settings = replace(settings, max_minutes=call.max_minutes)
    settings = settings.placed()
    check_data(settings.data, out)
    made = recipe(settings, out, **call.tracking())
    if call.dry_run:
        manifest_of(settings.data)  # which a plan of what never ran would not look at
    call.carry_out(made, f"synthetic volumes are in {out / SAMPLES}")


if __name__ == "__main__":
    run_app(app)
