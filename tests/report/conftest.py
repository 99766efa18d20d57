"""The folder of a small finished run, as a recipe writes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from medar.data.fingerprint import CaseFingerprint, Fingerprint
from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule, Plan
from medar.evaluation.distances import SetDistance
from medar.evaluation.frechet import Contribution
from medar.evaluation.generation import GenerationReport
from medar.evaluation.generation.memorisation import Audit, Nearest, Suspect
from medar.evaluation.generation.turing import TuringReport
from medar.evaluation.grid import GridArtifact
from medar.evaluation.reconstruction import ReconstructionReport
from medar.evaluation.reconstruction.cases import Example
from medar.files import write_json
from medar.generator.settings import Attribute, ConditionConfig
from medar.records import SYNTHESIS
from medar.report.folder import DEFAULT_STAGES
from medar.report.montages import ScalePreview, contact_sheet, save_reconstructions
from medar.settings import to_dict
from medar.volume import Volume, write_nifti
from medar.volume.display import SOFT_TISSUE

HOSTILE = "<script>alert(1)</script>|*x*"
"""A name with special characters of HTML and Markdown."""

GRIDS = ([1, 1, 1], [2, 2, 2], [3, 2, 3])

SECONDS = {"prepare": 4.0, "tokenizer": 130.0, "tokens": 3.0, "generator": 95.5, "synthesize": 2.0,
           "evaluate": 3700.0}  # fmt: skip


GRID = GridArtifact(value=1.5, interval=(1.25, 1.75), pattern=1.25, blocks=1.75)

LARGEST = [
    Contribution(feature="detail_0", fraction=0.5, shift=-3.25),
    Contribution(feature="octant_000", fraction=0.125, shift=1.0),
]


def volume(seed: int) -> Volume:
    array = np.random.default_rng(seed).normal(size=(1, 6, 5, 7)).astype(np.float32)
    return Volume(array=array, affine=np.diag([1.0, 1.0, 2.0, 1.0]))


AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def ramp() -> npt.NDArray[np.float32]:
    """A sample in HU (6, 4, 6): black to white in the soft-tissue window, steepest along x."""
    x, y, z = np.meshgrid(*(np.linspace(0, 1, side) for side in (6, 4, 6)), indexing="ij")
    return (SOFT_TISSUE[0] + 400 * (0.5 * x + 0.3 * y + 0.2 * z)).astype(np.float32)


@pytest.fixture(scope="session")
def sample() -> npt.NDArray[np.float32]:
    """The voxels of each sample of the run, in HU (6, 4, 6)."""
    return ramp()


def lines(path: Path, *values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, shared by all tests: use `run` to modify it."""
    out = tmp_path_factory.mktemp("run") / "small"
    _prepared(out / "prepared")
    _tokenizer(out / "tokenizer")
    _generator(out / "generator")
    _samples(out / "samples")
    _evaluation(out / "evaluation")
    (out / "config.yaml").write_text("seed: 0\ntokenizer: {training: {minutes: 2}}\n")
    write_json(
        out / "environment.json",
        {"python": "3.11.7", "medar": "0.1.0", "host": "secret", "git.commit": "abc123"},
    )
    for hour, name in enumerate(DEFAULT_STAGES[SYNTHESIS]):
        stage = {
            "name": name, "status": "done", "fingerprint": "f", "seconds": SECONDS[name],
            "started": f"2026-03-04T0{hour}:10:00+00:00",
            "ended": f"2026-03-04T0{hour}:20:00+00:00",
            "peak_mib": 2048 if name == "generator" else None, "attempts": 1, "outputs": [],
            "facts": {"stage": name, "value": 1.23456},
        }  # fmt: skip
        write_json(out / "stages" / f"{name}.json", stage)
    return out


def _prepared(out: Path) -> None:
    images = Path("/data/hearts")
    cases = tuple(
        Case(id=name, images=(images / f"{index}.nii.gz",), modality="CT", split=split,
             attributes={"age": 40.0 + index, "site": ["Bonn", HOSTILE][index % 2]})
        for index, (name, split) in enumerate(
            [("one", "train"), ("two", "train"), ("three", "val"), ("four", "test")]
        )
    )  # fmt: skip
    Manifest(root=images, source="MSD", cases=cases).save(out / "manifest.jsonl")
    Plan(
        spacing=(1.0, 1.0, 2.0), mode="volume", size=(6, 4, 6), downsampling=(2, 2, 2),
        intensity={"CT": IntensityRule(kind="window", low=-1000.0, high=600.0)},
    ).save(out / "plan.yaml")  # fmt: skip
    prepared = [
        {"id": case.id, "subject": case.subject, "split": case.split, "modality": case.modality,
         "attributes": case.attributes, "annotated": [], "image": "key", "label": None}
        for case in cases
    ]  # fmt: skip
    lines(out / "cases.jsonl", {"plan": "digest", "version": 2}, *prepared)
    lines(out / "failed.jsonl", {"id": "five", "reason": f"voxels are {HOSTILE}", "trace": None})
    Fingerprint(
        cases=tuple(
            CaseFingerprint(id=case.id, key="key", modality="CT", shape=(6 + n, 5, 7),
                            spacing=(1.0, 1.0, 2.0), quantiles=())
            for n, case in enumerate(cases)
        )
    ).save(out / "fingerprint.json")  # fmt: skip


def _tokenizer(out: Path) -> None:
    task = {"model": {"schedule": {"grids": [list(grid) for grid in GRIDS]}}}
    lines(
        out / "metrics.jsonl",
        {"step": 10, "train/loss": 0.5, "seconds": 60.0},
        {"step": 20, "train/loss": 0.25, "seconds": 119.0, "validation/psnr": 21.5,
         "validation/codebook_usage": 0.8, "validation/score": None},
    )  # fmt: skip
    (out / "config.yaml").write_text(yaml.safe_dump({"task": task, "training": {}}))
    three = [0.1, 0.2, 0.3]
    report = ReconstructionReport(
        cases=1, split="test", psnr=22.125, ssim=0.75, mae=31.0, mae_unit="HU",
        high_frequency_error=0.9, power_ratio=0.6,
        power_ratio_thirds=[1.0, 0.9, 0.6], grid_artifact=1.5, grid_artifact_interval=(1.25, 1.75),
        grid_artifacts={"2": GRID}, frechet=100.0, frechet_floor=12.0,
        frechet_interval=(90.0, 110.0), frechet_samples=6, frechet_contributions=LARGEST,
        codebook_usage=0.9, bits_per_voxel=0.05, compression=320.0, dice={"heart": 0.875},
        psnr_per_scale=[15.0, 18.0, 22.125], ssim_per_scale=three, mae_per_scale=three,
        high_frequency_error_per_scale=three, power_ratio_per_scale=three,
        usage_per_scale=[0.01, 0.5, 0.9], perplexity_per_scale=[1.0, 4.0, 9.0],
        residual_energy_per_scale=three, scales=["1x1x1", "2x2x2", "3x2x3"],
        tokens_per_scale=[1, 8, 18], warnings=["scale 0 uses few codes"], notes=["1 case: rough"],
        protocol={},
    )  # fmt: skip
    write_json(out / "evaluation" / "report.json", report.to_dict())
    prefixes = tuple(volume(seed) for seed in range(1, 4))
    examples = [Example(name="four", original=volume(0), prefixes=prefixes)]
    save_reconstructions(out / "evaluation" / "montage.png", examples)


def _generator(out: Path) -> None:
    attributes = (Attribute(name="sex", values=("F", "M")), Attribute(name="age", mean=41.5))
    condition = to_dict(ConditionConfig(attributes=attributes))
    task = {"model": {"condition": condition}, "parameters": 1_250_000}
    found = {f"validation/{name}/scale_{k}": value + k for name, value in
             (("cross_entropy", 1.0), ("marginal", 2.0)) for k in range(3)}  # fmt: skip
    lines(
        out / "metrics.jsonl",
        {"step": 5, "train/loss": 3.0, "seconds": 40.0},
        {"step": 30, "train/loss": 2.0, "seconds": 90.0, "validation/cross_entropy": 2.5,
         "validation/marginal": 3.5, "validation/accuracy": 0.25, **found},
    )  # fmt: skip
    (out / "config.yaml").write_text(yaml.safe_dump({"task": task, "training": {}}))


def _samples(out: Path) -> None:
    for index in range(3):
        name = f"sample_000{index}"
        write_json(out / f"{name}.json", {"attributes": {"sex": "F"}, "seed": index + 7})
        write_nifti(out / f"{name}.nii.gz", Volume(array=ramp()[None], affine=AFFINE))
    contact_sheet([volume(index) for index in range(3)], out / "contact_sheet.png")
    show = ScalePreview(out / "preview.png")
    for scales in (1, 2, 3):
        show(scales, [volume(10 * scales + index) for index in range(2)])


def _evaluation(out: Path) -> None:
    near = SetDistance(
        features=68, frechet=30.0, frechet_interval=(20.0, 40.0), frechet_floor=25.0,
        frechet_samples=2, contributions=LARGEST, kernel=-0.01,
        kernel_interval=(-0.1, 0.1), kernel_floor=None,
    )  # fmt: skip
    far = SetDistance(
        features=45, frechet=120.0, frechet_interval=(100.0, 140.0), frechet_floor=20.0,
        frechet_samples=2, contributions=LARGEST, kernel=1.5, kernel_interval=None,
        kernel_floor=0.5,
    )  # fmt: skip
    copied = Suspect(index=2, case=HOSTILE, distance=0.125)
    near_one = [Nearest(case="one", distance=distance) for distance in (3.0, 20.0, 100.0)]
    near_two = [Nearest(case=name, distance=0.5) for name in ("one", "two")]
    near_two.append(Nearest(case=HOSTILE, distance=0.125))
    audit = Audit(median=3.0, median_held_out=2.0, ratio=1.5, percentile=1.0, fraction_nearer=0.0,
                  suspects=[], nearest=near_one)  # fmt: skip
    caught = Audit(median=0.5, median_held_out=1.0, ratio=0.5, percentile=0.4, fraction_nearer=0.5,
                   suspects=[copied], nearest=near_two)  # fmt: skip
    report = GenerationReport(
        volumes=3, split="test", held_out=2, reference=2,
        distances={"radiomics-v2": near, "texture-v2": far}, intensity_distance=12.0,
        intensity_floor=4.0, intensity_unit="HU", ms_ssim=0.5, ms_ssim_real=0.25,
        power_ratio_thirds=[1.0, 0.75, 0.5], power_ratio_thirds_floor=[1.0, 1.125, 1.25],
        grid_artifact=1.5, grid_artifact_interval=(1.25, 1.75), grid_artifact_floor=1.0,
        grid_artifacts={"2": GRID},
        memorisation={"features": audit, "voxels": caught}, seconds_per_volume=1.5,
        peak_memory=2**30, notes=["3 generated volumes, fewer than 20: all figures are rough"],
        protocol={"held_out": "test split"},
        turing=TuringReport(
            volumes=3, held_out=2, auc=0.97, interval=(0.875, 1.0), floor_volumes=2, floor=0.25,
            floor_interval=(0.0, 0.75), scores=[], notes=["Turing test on 3 volumes per side"],
            protocol={},
        ),
    )  # fmt: skip
    write_json(out / "report.json", report.to_dict())
    contact_sheet([volume(0)], out / "contact_sheet.png", real=[volume(1)])
