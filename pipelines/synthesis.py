"""From a folder of volumes to synthetic volumes, one step after the other.

    python pipelines/synthesis.py --config demo --data PATH --out runs/x --minutes 10

Each step is one call of the library, and its results are logged to MLflow. To skip finished steps,
resume interrupted ones and get a report, use `medar run synthesis`, which runs the same steps.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import mlflow

import medar
from medar.recipes.settings import SynthesisSettings, load_recipe
from medar.settings import to_dict


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, train a tokenizer and a generator, synthesize, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo", help="a YAML file, or a name in configs/")
    parser.add_argument("--data", type=Path, required=True, help="a folder of volumes")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--minutes", type=float, help="of each training; default: the YAML's")
    options = parser.parse_args(arguments)
    config = medar.find_config(options.config, "recipes")
    settings = load_recipe(SynthesisSettings, config)
    out, workers = options.out, settings.data.workers
    out.mkdir(parents=True)

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{out.resolve().parent / 'mlflow.db'}")
    mlflow.set_experiment("medar")
    with mlflow.start_run(run_name=out.name) as run:
        mlflow.log_dict(to_dict(settings), "config.yaml")

        def tracker(name: str) -> "closing[medar.MlflowTracker]":
            return closing(medar.MlflowTracker(out / name, name=name, parent=run.info.run_id))

        # 1. Resample, normalise and cache every case, by a plan that follows from the data.
        manifest = medar.read_manifest(options.data, modality=settings.data.modality)
        plan = medar.plan_data_set(
            manifest,
            out / "prepared",
            workers=workers,
            voxels=settings.data.voxels,
            overrides=settings.plan_values(),
        )
        data = medar.prepare(manifest, plan, out / "prepared", workers=workers).folder

        # 2. Train a tokenizer, and measure its reconstructions on the validation split.
        training = settings.tokenizer.within(options.minutes)
        with tracker("tokenizer") as t:
            medar.train_tokenizer(training, data, out / "tokenizer", t)
        tokenizer = medar.Tokenizer.from_pretrained(out / "tokenizer")
        quality = medar.evaluate_tokenizer(tokenizer, data, "val")
        mlflow.log_metrics({"psnr": quality.psnr, "ssim": quality.ssim})

        # 3. Encode every case, and augmented variants of it, as tokens.
        tokens = medar.encode_data_set(
            data,
            out / "tokens",
            tokenizer,
            variants=settings.generator.tokens.variants,
            augmentation=settings.generator.tokens.augmentation,
            maps=settings.generator.condition.map == "label",
        ).folder

        # 4. Train a generator on the tokens.
        with tracker("generator") as t:
            generator = settings.generator.within(options.minutes)
            medar.train_generator(generator, tokens, out / "generator", t)

        # 5. Synthesize volumes.
        synthesizer = medar.Synthesizer.from_pretrained(out / "generator")
        request = settings.samples
        samples = synthesizer(request.n, seed=request.seed, attributes=request.attributes)
        for index, sample in enumerate(samples):
            medar.write_nifti(out / "samples" / f"sample_{index:04d}.nii.gz", sample.image)

        # 6. Compare them with real volumes: fidelity, diversity, copies.
        volumes = medar.read_generated(medar.generated_files(out / "samples"), plan)
        report = medar.evaluate_generation(volumes, data, split=settings.evaluation.split)
        mlflow.log_metrics({f"frechet_{n}": d.frechet for n, d in report.distances.items()})
        mlflow.log_dict(report.to_dict(), "evaluation.json")
    print(f"synthetic volumes are in {out / 'samples'}")


if __name__ == "__main__":
    main()
