"""The verdict on a run: grade, reason and next command, from the files in its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from medar.evaluation.segmentation.report import LabelReport, ModelReport, SegmentationReport
from medar.files import read_json, write_json
from medar.records import Records, RunRecord
from medar.report.blocks import Verdict
from medar.report.folder import RunFolder
from medar.report.run import find_verdict, write_report
from medar.report.verdict import verdict


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run whose samples have 30 (floor 20) and no suspected copy."""
    run = Path(shutil.copytree(finished, tmp_path / "small"))
    report = read_json(run / "evaluation" / "report.json")
    report["memorisation"]["voxels"]["suspects"] = []
    report |= {"volumes": 50, "grid_artifact_interval": None}
    write_json(run / "evaluation" / "report.json", report)
    settings = {name: {"training": {"minutes": 2.0}} for name in ("tokenizer", "generator")}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def judged(
    run: Path, samples: float, reconstructions: float = 10.0, floor: float = 10.0
) -> Verdict:
    """The verdict with other Frechet distances, of both extractors."""
    path = run / "evaluation" / "report.json"
    report = read_json(path)
    for one in report["distances"].values():
        one |= {"frechet": samples, "frechet_interval": None, "frechet_floor": floor}
    write_json(path, report)
    path = run / "tokenizer" / "evaluation" / "report.json"
    write_json(path, {**read_json(path), "frechet": reconstructions, "frechet_floor": floor})
    return verdict(RunFolder(run))


@pytest.mark.parametrize(
    ("samples", "grade"), [(14.0, "good"), (16.0, "rough"), (49.0, "rough"), (51.0, "poor")]
)
def test_the_grade_is_the_multiple_of_the_floor(run: Path, samples: float, grade: str) -> None:
    assert judged(run, samples).grade == grade


def test_a_good_run_is_used_next(run: Path) -> None:
    found = judged(run, 14.0)
    assert (
        found.reason
        == "samples are 1.4 times as far from the training data as real volumes are (radiomics-v2)"
    )
    assert found.command == f"medar synthesize {run} {run}-samples -n 100"


def test_the_tokenizer_is_blamed_if_reconstructions_are_as_far(run: Path) -> None:
    found = judged(run, 100.0, reconstructions=90.0)
    assert found.reason == (
        "reconstructions are 9 times as far from the training data as real volumes are: the "
        "tokenizer had 20 steps in 1 min 59 s, and there is no detail decoder"
    )
    assert found.command == (
        f"medar run synthesis {run}/config.yaml --out {run} tokenizer.training.minutes=8"
    )


def test_the_generator_is_blamed_otherwise(run: Path) -> None:
    found = judged(run, 40.0, reconstructions=11.0)
    assert found.reason == (
        "samples are 4 times as far from the training data as real volumes are (radiomics-v2): "
        "the generator had 30 steps in 1 min 30 s"
    )
    assert found.command.endswith("generator.training.minutes=4")
    # Far from real volumes, but much nearer than the samples.
    assert "the generator had" in judged(run, 100.0, reconstructions=30.0).reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_minutes": 30.0}, "--max-minutes 120 --force generator"),
        ({"generator": {"training": {"steps": 30}}}, "generator.training.steps=120"),
        (
            {"generator": {"training": {"steps": 30, "minutes": 5}}},
            "generator.training.steps=120 generator.training.minutes=20",
        ),
        ({"generator": {"training": {"steps": 99, "minutes": 5}}}, "generator.training.minutes=20"),
    ],
)
def test_the_next_command_raises_the_limit_that_ended_the_training(
    run: Path, settings: dict[str, Any], words: str
) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    command = judged(run, 100.0).command
    assert command.partition(f"--out {run} ")[2] == words


def test_copies_and_few_volumes_are_part_of_the_reason(finished: Path) -> None:
    found = verdict(RunFolder(finished))
    assert found.grade == "poor"  # texture-v2, at 6 times its floor
    assert (
        "; 1 volume may be copied from the training data; a verdict on 3 volumes is" in found.reason
    )


def test_samples_closer_than_real_volumes_are_not_good(run: Path) -> None:
    found = judged(run, 4.0)
    assert found.grade == "rough"
    assert "closer to the training volumes than new real ones" in found.reason
    assert found.command.endswith("generator.training.minutes=1")  # half of its 2 minutes


@pytest.mark.parametrize(("low", "grade"), [(1.10, "good"), (1.12, "rough")])
def test_a_visible_grid_of_patches_is_rough_at_best(run: Path, low: float, grade: str) -> None:
    path = run / "evaluation" / "report.json"
    grid = {"grid_artifact": 1.3, "grid_artifact_interval": [low, 1.5], "grid_artifact_floor": 1.01}
    write_json(path, {**read_json(path), **grid})
    found = judged(run, 14.0)
    assert found.grade == grade
    reason = (
        "; the grid of patches is visible (grid artifact 1.30, floor 1.01): the tokenizer had 20"
    )
    shown = reason in found.reason
    assert shown == ("tokenizer.training.minutes=4" in found.command) == (grade == "rough")
    assert judged(run, 51.0).grade == "poor"


def test_a_run_without_evaluation_has_no_verdict(run: Path) -> None:
    (run / "evaluation" / "report.json").unlink()
    assert find_verdict(RunFolder(run)) is None
    assert 'class="verdict' not in write_report(run).read_text()


def test_the_verdict_stands_at_the_top_of_the_page(run: Path) -> None:
    judged(run, 100.0)
    text = write_report(run).read_text()
    assert '<div class="verdict poor" role="note"><p><b>Poor:</b> samples are 10 times' in text
    assert text.index('class="verdict') < text.index("set aside") < text.index("<nav")
    markdown = (run / "report.md").read_text()
    assert "**Poor:** samples are 10 times" in markdown
    assert f"Next: `medar run synthesis {run}/config.yaml" in markdown


def segmented(run: Path, dice: dict[str, float], curve: list[float]) -> Verdict:
    """The verdict on a segmentation run: Dice by label, and validation Dice over the training."""
    records = Records(run)
    records.write_run(RunRecord(recipe="segmentation", stages=("prepare", "train", "evaluate")))
    none: dict[str, Any] = dict.fromkeys(
        ("dice_interval", "hd95", "hd95_interval", "nsd", "nsd_interval", "volume")
    )
    counts = dict.fromkeys(("missed", "false_positive", "absent", "unknown"), 0)
    labels = {
        name: LabelReport(value=1, cases=2, dice=value, **counts, **none)
        for name, value in dice.items()
    }
    means = dict.fromkeys(
        ("dice_interval", "hd95_mean", "hd95_interval", "nsd_mean", "nsd_interval", "calibration")
    )
    mean = sum(dice.values()) / len(dice)
    model = ModelReport(name="model", dice_mean=mean, labels=labels, cases=[], **means)
    report = SegmentationReport(
        cases=2, subjects=2, split="test", tolerance=1.0, models=[model], comparisons=[], notes=[],
        protocol={},
    )  # fmt: skip
    write_json(run / "evaluation" / "report.json", report.to_dict())
    lines = [
        {"step": 10 * n, "seconds": 5.0 * n, "validation/dice": value}
        for n, value in enumerate(curve, 1)
    ]
    (run / "segmenter").mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "segmenter" / "metrics.jsonl").write_text(text)
    settings = {"segmentation": {"training": {"steps": 20}}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return verdict(RunFolder(run))


def test_segmentation_is_judged_by_its_dice(run: Path) -> None:
    found = segmented(run, {"one": 0.9, "two": 0.75}, [0.5, 0.6])
    assert found == Verdict(
        "good", "the mean Dice is 0.82, of two alone 0.75", f"medar segment {run} SCAN.nii.gz "
        "LABELS.nii.gz",
    )  # fmt: skip
    found = segmented(run, {"one": 0.7}, [0.5, 0.6])
    assert (found.grade, found.reason) == (
        "rough", "the mean Dice is 0.70: the network had 20 steps in 10 s",
    )  # fmt: skip
    assert found.command.endswith("segmentation.training.steps=40")


def test_a_network_that_no_longer_improves_needs_more_labels(run: Path) -> None:
    found = segmented(run, {"one": 0.4}, [0.5, 0.6, 0.58])
    assert found.grade == "poor"
    assert found.reason.endswith("and was no longer improving, with 0 labelled cases")
    assert found.command == "medar data check /data/hearts --deep"
