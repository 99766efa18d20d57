"""From a folder of volumes with labels to a segmentation network, one step after the other.

    python pipelines/segmentation.py --config segment_hippocampus_mr --data PATH --out runs/y

Each step is one call of the library, and its results are logged to MLflow. To skip finished steps,
resume interrupted ones and get a report, use `medar run segmentation`, which runs the same steps.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import mlflow

import medar
from medar.evaluation.segmentation.predictors import FilesPredictor
from medar.recipes.settings import SegmentationRecipeSettings, load_recipe
from medar.segmentation.files import segment_cases
from medar.settings import to_dict


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, pretrain without labels, train with labels, predict, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or a name in configs/")
    parser.add_argument("--data", type=Path, required=True, help="a folder of volumes and labels")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--minutes", type=float, help="of each training; default: the YAML's")
    options = parser.parse_args(arguments)
    config = medar.find_config(options.config, "recipes")
    settings = load_recipe(SegmentationRecipeSettings, config)
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

        # 2. Train the backbone without labels, to predict the tokens of a tokenizer.
        pretrained = None
        if settings.pretrain is not None:
            pretraining = settings.pretrain.within(options.minutes)
            if settings.tokenizer is not None:
                tokenizer = settings.tokenizer.within(options.minutes)
                with tracker("tokenizer") as t:
                    medar.train_tokenizer(tokenizer, data, out / "tokenizer", t)
                pretraining = pretraining.with_tokenizer(str(out / "tokenizer"))
            pretrained = out / "pretrained"
            with tracker("pretrained") as t:
                medar.pretrain_backbone(pretraining, data, pretrained, t)

        # 3. Train the network with labels.
        training, folder = settings.segmentation.within(options.minutes), out / "segmenter"
        with tracker("segmenter") as t:
            medar.train_segmenter(training, data, folder, t, pretrained=pretrained)

        # 4. Segment the test split, each case on the grid of its file.
        network, split = medar.Segmenter.from_pretrained(folder), settings.evaluation.split
        segment_cases(network, data, split, out / "label_maps", settings.prediction)

        # 5. Compare the label maps with the truth.
        report = medar.evaluate_segmentation(FilesPredictor(out / "label_maps"), data, split)
        dice = {f"dice_{name}": value for name, value in report.dice.items() if value is not None}
        mlflow.log_metrics(dice)
        mlflow.log_dict(report.to_dict(), "evaluation.json")
    print(f"label maps are in {out / 'label_maps'}")


if __name__ == "__main__":
    main()
