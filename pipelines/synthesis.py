"""From a folder of volumes to synthetic volumes, one step after the other.

    python pipelines/synthesis.py --config demo --data PATH --out runs/x --minutes 10

Each step is one call of the library, and MLflow keeps what it gave. To skip finished steps, resume
interrupted ones and get a report, use `medar run synthesis`, which runs the same steps.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import mlflow

from medar.data.planning import resolve_plan
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.evaluation.generation import evaluate_generation
from medar.evaluation.generation.files import generated_files, read_generated
from medar.evaluation.reconstruction import evaluate_tokenizer
from medar.generator.training import encode_tokens, train_generator
from medar.recipes.configs import find_config
from medar.recipes.settings import SynthesisSettings, load_recipe
from medar.settings import to_dict
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer, seeds_from
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.training import train_tokenizer
from medar.tracking import MlflowTracker


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, train a tokenizer and a generator, synthesize, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo", help="a YAML file, or a name in configs/")
    parser.add_argument("--data", type=Path, required=True, help="a folder of volumes")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--minutes", type=float, help="of each training; default: the YAML's")
    options = parser.parse_args(arguments)
    settings = load_recipe(SynthesisSettings, find_config(options.config, "recipes"))
    out: Path = options.out
    out.mkdir(parents=True)

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{out.resolve().parent / 'mlflow.db'}")
    mlflow.set_experiment("medar")
    with mlflow.start_run(run_name=out.name) as run:
        mlflow.log_dict(to_dict(settings), "config.yaml")

        def tracker(name: str) -> "closing[MlflowTracker]":
            return closing(MlflowTracker(out / name, name=name, parent=run.info.run_id))

        # 1. Resample, normalise and cache every case, by a plan that follows from the data.
        manifest = read_manifest(options.data, modality=settings.data.modality)
        plan = resolve_plan(
            manifest,
            out / "prepared",
            workers=settings.data.workers,
            voxels=settings.data.voxels,
            overrides=settings.plan_values(),
        )
        data = prepare(manifest, plan, out / "prepared", workers=settings.data.workers).folder

        # 2. Train a tokenizer, and measure what it loses on the validation split.
        with tracker("tokenizer") as t:
            train_tokenizer(settings.tokenizer.within(options.minutes), data, out / "tokenizer", t)
        quality = evaluate_tokenizer(Tokenizer.from_pretrained(out / "tokenizer"), data, "val")
        mlflow.log_metrics({"psnr": quality.psnr, "ssim": quality.ssim})

        # 3. Encode every case, and augmented variants of it, as tokens.
        tokens = encode_tokens(settings.generator, data, out / "tokenizer", out / "tokens")

        # 4. Train a generator on the tokens.
        with tracker("generator") as t:
            train_generator(
                settings.generator.within(options.minutes), tokens, out / "generator", t
            )

        # 5. Synthesize volumes.
        samples = settings.samples
        synthesizer = Synthesizer.from_pretrained(out / "generator")
        job = synthesizer.job(Request(attributes=samples.attributes, sampling=samples.sampling))
        write_samples(out / "samples", synthesizer, job, seeds_from(samples.seed, samples.n))

        # 6. Compare them with real volumes: fidelity, diversity, copies.
        volumes = read_generated(generated_files(out / "samples"), plan)
        report = evaluate_generation(volumes, data, split=settings.evaluation.split)
        for name, distance in report.distances.items():
            mlflow.log_metrics({f"frechet_{name}": distance.frechet})
        mlflow.log_dict(report.to_dict(), "evaluation.json")
    print(f"synthetic volumes are in {out / 'samples'}")


if __name__ == "__main__":
    main()
