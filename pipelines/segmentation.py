"""From a folder of volumes with labels to a segmentation network, one step after the other.

    python pipelines/segmentation.py --config segment_hippocampus_mr --data PATH --out runs/y

Each step is one call of the library, and MLflow keeps what it gave. To skip finished steps, resume
interrupted ones and get a report, use `medar run segmentation`, which runs the same steps.
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
from medar.evaluation.segmentation import evaluate_segmentation
from medar.evaluation.segmentation.predictors import FilesPredictor
from medar.recipes.configs import find_config
from medar.recipes.settings import SegmentationRecipeSettings, load_recipe
from medar.segmentation.files import segment_cases
from medar.segmentation.pretext.training import pretrain_backbone
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.training import train_segmenter
from medar.settings import to_dict
from medar.tokenizer.training import train_tokenizer
from medar.tracking import MlflowTracker


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, pretrain without labels, train with labels, predict, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or a name in configs/")
    parser.add_argument("--data", type=Path, required=True, help="a folder of volumes and labels")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--minutes", type=float, help="of each training; default: the YAML's")
    options = parser.parse_args(arguments)
    settings = load_recipe(SegmentationRecipeSettings, find_config(options.config, "recipes"))
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

        # 2. Train the backbone without labels, to predict the tokens of a tokenizer.
        pretrained = None
        if settings.pretrain is not None:
            pretraining = settings.pretrain.within(options.minutes)
            if settings.tokenizer is not None:
                tokenizer = settings.tokenizer.within(options.minutes)
                with tracker("tokenizer") as t:
                    train_tokenizer(tokenizer, data, out / "tokenizer", t)
                pretraining = pretraining.with_tokenizer(str(out / "tokenizer"))
            pretrained = out / "pretrained"
            with tracker("pretrained") as t:
                pretrain_backbone(pretraining, data, pretrained, t)

        # 3. Train the network with labels.
        training, folder = settings.segmentation.within(options.minutes), out / "segmenter"
        with tracker("segmenter") as t:
            train_segmenter(training, data, folder, t, pretrained=pretrained)

        # 4. Segment the test split, each case on the grid of its file.
        network, split = Segmenter.from_pretrained(folder, "auto"), settings.evaluation.split
        segment_cases(network, data, split, out / "label_maps", settings.prediction)

        # 5. Compare the label maps with the truth.
        report = evaluate_segmentation(FilesPredictor(out / "label_maps"), data, split)
        dice = {f"dice_{name}": value for name, value in report.dice.items() if value is not None}
        mlflow.log_metrics(dice)
        mlflow.log_dict(report.to_dict(), "evaluation.json")
    print(f"label maps are in {out / 'label_maps'}")


if __name__ == "__main__":
    main()
