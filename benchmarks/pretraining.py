"""Pretraining for segmentation: backbones x pretext tasks x label fractions x seeds.

Each row fine-tunes a network for the same time, from scratch or from a backbone that was pretrained
on the training images without labels, and evaluates it once on the test split. Rows in
OUT/results.jsonl are not run again, and an interrupted row resumes. At the end, a table of all rows
is printed and OUT/pretraining.png is drawn.

    python benchmarks/pretraining.py --data PREPARED --tokenizer TOKENIZER --out runs/pretraining \
        --config configs/segmentation/hippocampus_mr.yaml \
        --pretrain-config configs/segmentation/pretrain_hippocampus_mr.yaml \
        [--rows dynunet:none:10:0 ...] [--minutes 3] [--pretrain-minutes 10] [--json]

Rows:
    BACKBONE:PRETEXT:PERCENT:SEED   such as dynunet:next_scale:10:0; PRETEXT is none, masked,
                                    next_scale, mixture or semantic_order, PERCENT the label
                                    fraction of the training subjects
    synthetic:PERCENT:SEED          all labels and the pairs of --synthetic: PERCENT of the training
                                    items are synthetic, 0 for real only, 100 for synthetic only

A backbone of the configuration's kind has the configuration's size, other kinds have the sizes in
BACKBONES. SEED determines the subjects, the weights that are not pretrained and the batches: rows
of the same fraction and seed differ only in the pretext task. A backbone is pretrained once for all
rows, in OUT/pretrained, so that intervals over seeds exclude the variance of pretraining. Both
trainings keep the weights that are best on the validation split (pretraining: those with the lowest
loss). Dice is computed on prepared volumes, by sliding windows with the mirror axes of training.
--organs 1-7 turns all other labels into background.

Use --set training.learning_rate=0.003 for a backbone that needs a different learning rate, and
--pretrain-set for a pretext task.

On a machine with other load, use --steps and --pretrain-steps instead of minutes: the number of
steps that a row takes in that time on an idle machine. As it differs between backbones and pretext
tasks, select the rows with --rows.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretraining_table
import torch
from generators import ROWS_FILE, folder_of, length, parameters, run_rows
from tokenizer import read

from medar.data.loading import PreparedDataset
from medar.data.plan import Plan
from medar.data.prepared import ARRAYS, CASES_FILE, PLAN_FILE
from medar.losses import to_classes
from medar.segmentation.backbones import BackboneSettings, TrunkSettings
from medar.segmentation.data import is_annotated
from medar.segmentation.dice import DiceMeter
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings, SyntheticSettings
from medar.segmentation.sliding_window import predict_classes
from medar.segmentation.training import make_task
from medar.settings import load_yaml
from medar.training import fit

PRETEXTS = ("none", "masked", "next_scale", "mixture")
ROWS = (
    *(
        f"dynunet:{task}:{part}:{seed}"
        for seed in range(3)
        for part in (10, 100)
        for task in PRETEXTS
    ),
    *(f"trunk:{task}:10:{seed}" for seed in range(3) for task in ("none", "next_scale")),
)
BACKBONES = {
    "dynunet": BackboneSettings(kind="dynunet", width=16),
    "segresnet": BackboneSettings(kind="segresnet", width=8),
    "swinunetr": BackboneSettings(kind="swinunetr", width=12),
    "trunk": BackboneSettings(kind="trunk", width=12, trunk=TrunkSettings(depth=3, head_width=32)),
}
"""1.2 to 1.6 million parameters on hippocampus_mr; the smallest "swinunetr" has 4.1 million."""


def main() -> None:
    """Run missing rows, print the table, draw the plot."""
    options = parse()
    if options.organs:
        options.data = organs_only(options.data, options.organs, options.out / "data")
    run_rows(options, lambda row: run(row, options))
    rows = read(options.out / ROWS_FILE)
    print(json.dumps(rows) if options.json else pretraining_table.tables(rows))
    pretraining_table.plot(rows, options.out / "pretraining.png")


def run(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune and evaluate one row."""
    settings = load_yaml(SegmentationSettings, options.config, options.set)
    match row.split(":"):
        case ["synthetic", percent, seed]:
            pretext, settings = "none", with_pairs(settings, int(percent) / 100, options)
        case [kind, pretext, percent, seed]:
            data = replace(settings.data, label_fraction=int(percent) / 100, label_seed=int(seed))
            settings = replace(settings, backbone=backbone_of(kind, settings), data=data)
        case _:
            raise SystemExit(f"{row}: BACKBONE:PRETEXT:PERCENT:SEED or synthetic:PERCENT:SEED")
    training = replace(settings.training, seed=int(seed), **length(options.minutes, options.steps))
    settings = replace(settings, training=training)
    about: dict[str, Any] = {}
    if pretext != "none":
        about = pretrained(pretext, settings, options)
    out, start = folder_of(options, row), about.get("pretrained")
    task = make_task(settings, options.data, start, synthetic_folder=options.out / "synthetic")
    outcome = fit(task, settings.training, out)
    return {
        "minutes": outcome.elapsed / 60, "steps": outcome.step, "best": outcome.best,
        "best_step": outcome.best_step, "learning_rate": training.learning_rate,
        "subjects": list(task.train.subjects), "parameters": parameters(task.model),
        **about, **tested(out, options.data),
    }  # fmt: skip


def backbone_of(kind: str, settings: SegmentationSettings) -> BackboneSettings:
    """The configuration's backbone, or another kind with the size in BACKBONES."""
    if kind not in BACKBONES:
        raise SystemExit(f"{kind}: unknown backbone; known backbones: {', '.join(BACKBONES)}")
    return settings.backbone if settings.backbone.kind == kind else BACKBONES[kind]


def with_pairs(
    settings: SegmentationSettings, fraction: float, options: argparse.Namespace
) -> SegmentationSettings:
    """The settings with a fraction of synthetic cases."""
    if not fraction:
        return settings
    if options.synthetic is None:
        raise SystemExit("rows with synthetic cases need --synthetic FOLDER")
    pairs = SyntheticSettings(folder=str(options.synthetic), fraction=fraction)
    return replace(settings, data=replace(settings.data, synthetic=pairs))


def pretrained(
    kind: str, settings: SegmentationSettings, options: argparse.Namespace
) -> dict[str, Any]:
    """A backbone pretrained on the training images; trained once and then reused."""
    from medar.segmentation.pretext.settings import PretextSettings, PretrainSettings
    from medar.segmentation.pretext.training import pretrain_backbone

    if options.pretrain_config is None:
        raise SystemExit(f"pretext {kind} needs --pretrain-config")
    changes = [*options.pretrain_set, f"pretext.kind={kind}"]
    if PretextSettings(kind=kind).needs_tokenizer:
        if options.tokenizer is None:
            raise SystemExit(f"pretext {kind} needs --tokenizer")
        changes.append(f"pretext.tokenizer={options.tokenizer}")
    chosen = load_yaml(PretrainSettings, options.pretrain_config, changes)
    training = replace(chosen.training, **length(options.pretrain_minutes, options.pretrain_steps))
    chosen = replace(chosen, plan=settings.plan, backbone=settings.backbone, training=training)
    out = options.out / "pretrained" / f"{settings.backbone.kind}-{kind}"
    outcome = pretrain_backbone(chosen, options.data, out)
    return {
        "pretrained": str(out), "pretrain_minutes": outcome.elapsed / 60,
        "pretrain_steps": outcome.step, "pretrain_learning_rate": training.learning_rate,
    }  # fmt: skip


@torch.no_grad()
def tested(run: Path, data: Path) -> dict[str, Any]:
    """Dice of a run's best weights on the test split: mean over labels, by label, by case."""
    model = Segmenter.from_pretrained(run)
    cases = PreparedDataset(data, split="test")
    labels = cases.plan.labels
    names, values = list(labels.values()), list(labels)
    whole, by_case = DiceMeter(names), {}
    for index in range(len(cases)):
        case = cases.prepared[index]
        if not is_annotated(case):
            continue
        chosen = predict_classes(model, torch.from_numpy(cases.prepared.image(case)))[None]
        truth = to_classes(cases.label(case)[None], values)
        annotated = torch.tensor([[value in case.annotated for value in values]])
        one = DiceMeter(names)
        for meter in (whole, one):
            meter.compare(chosen, truth, annotated)
        by_case[case.id] = list(one.result().values())
    found = {name: dice for name, dice in whole.result().items() if dice is not None}
    return {"dice": sum(found.values()) / len(found), "labels": found, "cases": by_case}


def organs_only(data: Path, values: list[int], out: Path) -> Path:
    """The same prepared cases with a plan that names only these labels; arrays are linked."""
    plan = Plan.load(data / PLAN_FILE)
    missing = set(values) - set(plan.labels)
    if missing:
        raise SystemExit(f"--organs: {data} has no labels {sorted(missing)}")
    plan = replace(plan, labels={value: plan.labels[value] for value in values})
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / PLAN_FILE)
    header, *lines = (data / CASES_FILE).read_text().splitlines()
    named = json.dumps({**json.loads(header), "plan": Plan.load(out / PLAN_FILE).digest})
    (out / CASES_FILE).write_text("\n".join([named, *lines]) + "\n")
    if not (out / ARRAYS).exists():
        (out / ARRAYS).symlink_to((data / ARRAYS).resolve())
    return out


def organs(text: str) -> list[int]:
    """Label values as typed: 1-7, or 1,2,5."""
    first, dash, last = text.partition("-")
    if dash:
        return list(range(int(first), int(last) + 1))
    return [int(value) for value in text.split(",")]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="prepared cases")
    parser.add_argument("--config", type=Path, required=True, help="settings of fine-tuning")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=3.0, help="minutes of fine-tuning")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--pretrain-config", type=Path, help="settings of pretraining")
    parser.add_argument("--pretrain-minutes", type=float, default=10.0)
    parser.add_argument("--pretrain-steps", type=int, help="instead of minutes")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE overrides of fine-tuning")
    parser.add_argument(
        "--pretrain-set", nargs="*", default=[], help="KEY=VALUE overrides of pretraining"
    )
    parser.add_argument("--tokenizer", type=Path, help="trained on the training cases only")
    parser.add_argument("--synthetic", type=Path, help="output of `medar synthesize`")
    parser.add_argument("--organs", type=organs, help="labels to use, such as 1-7; default: all")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
