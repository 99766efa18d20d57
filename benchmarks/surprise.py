"""Planted faults in held-out scans: how often does `medar score` put the damaged scan first?

Each fault is planted in each held-out case, which is then compared with all other held-out cases
as they are. Printed is the area under the ROC curve: the probability that a planted case scores
higher than one as it is (0.5: chance). Beside the score: its two parts alone, and two baselines
without a generator, the Mahalanobis distance of intensity, gradient and texture features
(`medar.evaluation.extractors`), and the largest robust deviation of simple statistics: mean,
deviation, quantiles, side lengths and spacing, as a script for quality control would check them.

    python benchmarks/surprise.py hippocampus-mr PREPARED/manifest.jsonl --seeds 0 1 2 \
        --out runs/surprise.jsonl
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from medar import Synthesizer
from medar.data.manifest import Case, Manifest
from medar.data.preparation import prepare_image
from medar.data.reading import read_image
from medar.evaluation.extractors.handcrafted import radiomics, texture
from medar.evaluation.surprise.likelihood import Likelihood, measure
from medar.evaluation.surprise.ranking import FAR, MAD_SCALE, rank
from medar.volume import Volume

Array = npt.NDArray[np.float64]
SHRINKAGE = 0.1
"""Weight of the identity in the correlation of features."""


def planted(image: Volume, generator: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    """A scan with each fault."""
    voxels, affine = image.array[0].astype(np.float64), image.affine
    low, high = np.percentile(voxels, [0.5, 99.5])
    middle = [int(generator.integers(side // 4, side - side // 4)) for side in voxels.shape]
    distance = np.sqrt(
        sum((axis - m) ** 2 for axis, m in zip(np.indices(voxels.shape), middle, strict=True))
    )

    def changed(array: Array, scale: tuple[float, float, float] = (1, 1, 1)) -> Volume:
        made = Volume.from_array(array.astype(np.float32), affine @ np.diag([*scale, 1.0]))
        return replace(made, modality=image.modality)

    position = np.linspace(-1, 1, voxels.shape[1])[None, :, None]
    dark = voxels.copy()
    dark[:, :, middle[2] : middle[2] + 2] = low
    kept = np.delete(voxels, range(middle[2], middle[2] + 6), axis=2)
    noise = generator.normal(0, 0.15 * (high - low), voxels.shape)
    waves = 0.12 * (high - low) * np.sin(2 * np.pi * np.arange(voxels.shape[1]) / 5)
    yield "mirrored front to back", changed(voxels[:, ::-1])
    yield "mirrored top to bottom", changed(voxels[:, :, ::-1])
    yield "axes y and z swapped", changed(voxels.transpose(0, 2, 1))
    yield "wrapped by a third", changed(np.roll(voxels, voxels.shape[1] // 3, axis=1))
    yield "inverted intensities", changed(low + high - voxels)
    yield "spacing 1.3 times too large", changed(voxels, (1.3, 1.3, 1.3))
    yield "slices 1.5 times too far apart", changed(voxels, (1, 1, 1.5))
    yield "six slices missing", changed(kept)
    yield "two slices dark", changed(dark)
    yield "shading along y", changed(voxels * np.exp(0.6 * position))
    yield "noise", changed(voxels + noise)
    yield "blur", changed(ndimage.gaussian_filter(voxels, 1.0))
    yield "stripes", changed(voxels + waves[None, :, None])
    yield "bright ball, radius 3 mm", changed(np.where(distance <= 3, high, voxels))
    yield "grey ball, radius 5 mm", changed(np.where(distance <= 5, (low + high) / 2, voxels))


class Measured:
    """A scan and everything that it is judged by."""

    def __init__(self, synthesizer: Synthesizer, image: Volume, case: Case) -> None:
        self.likelihood: Likelihood = measure(synthesizer, image, case)
        prepared = torch.from_numpy(prepare_image(image, synthesizer.plan)[0].copy())[None]
        self.features = (
            torch.cat([radiomics(prepared), texture(prepared)], dim=1)[0].double().numpy()
        )
        quantiles = np.quantile(image.array, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
        moments = [image.array.mean(), image.array.std()]
        self.statistics = np.array([*moments, *quantiles, *image.shape, *image.grid.spacing])


def scores(one: Measured, others: list[Measured]) -> dict[str, float]:
    """By method; larger is more surprising."""
    (found,) = rank({"case": one.likelihood}, [other.likelihood for other in others])
    return {
        "score": found.score,
        "cross-entropy": found.nats_deviation,
        "residual": abs(found.residual_deviation),
        "features": _mahalanobis(one.features, np.stack([o.features for o in others])),
        "statistics": _largest(one.statistics, np.stack([o.statistics for o in others])),
    }


def area_under_curve(planted: list[float], normal: list[float]) -> float:
    """The probability that one of the first is larger than one of the second."""
    difference = np.subtract.outer(planted, normal)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def _robust(usual: Array) -> tuple[Array, Array]:
    median = np.median(usual, axis=0)
    deviation = MAD_SCALE * np.median(np.abs(usual - median), axis=0)
    return median, np.maximum(deviation, 1e-3 * np.abs(median) + 1e-6)


def _largest(one: Array, usual: Array) -> float:
    median, deviation = _robust(usual)
    return float(np.abs((one - median) / deviation).max())


def _mahalanobis(one: Array, usual: Array) -> float:
    median, deviation = _robust(usual)
    z = ((one - median) / deviation).clip(-30, 30)
    correlation = np.cov(((usual - median) / deviation).clip(-5, 5).T)
    correlation = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(z))
    return float(np.sqrt(z @ np.linalg.solve(correlation, z)))


def main() -> None:
    """Plant, score, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("model")
    options.add_argument("data", type=Path, help="manifest.jsonl of a prepared data set")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--limit", type=int, help="number of held-out cases")
    given = options.parse_args()
    synthesizer = Synthesizer.from_pretrained(given.model)
    data = Manifest.load(given.data)
    cases = [case for case in data if case.split in ("val", "test")][: given.limit]
    images = [read_image(case, synthesizer.plan.reading) for case in cases]
    pairs = list(zip(images, cases, strict=True))
    usual = [Measured(synthesizer, image, case) for image, case in pairs]
    others = [[one for one in usual if one is not own] for own in usual]
    normal = [scores(one, rest) for one, rest in zip(usual, others, strict=True)]
    alarms = np.mean([one["score"] >= FAR for one in normal])
    print(f"{len(cases)} held-out cases; as they are, {alarms:.1%} have a score of {FAR:g} or more")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in given.seeds:
        found: dict[str, list[dict[str, float]]] = {}
        for index, (image, case) in enumerate(pairs):
            for fault, volume in planted(image, np.random.default_rng((seed, index))):
                one = Measured(synthesizer, volume, case)
                found.setdefault(fault, []).append(scores(one, others[index]))
        for fault, values in found.items():
            areas = {
                method: area_under_curve([v[method] for v in values], [v[method] for v in normal])
                for method in normal[0]
            }
            caught = float(np.mean([value["score"] >= FAR for value in values]))
            rows.append({"seed": seed, "fault": fault, "caught": caught, **areas})
            print(json.dumps(rows[-1]), flush=True)
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = list(normal[0])
    print("| fault |", " | ".join(methods), "| caught |")
    print("|---" * (len(methods) + 2) + "|")
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    for fault in [*faults, "mean"]:
        chosen = [row for row in rows if fault in (row["fault"], "mean")]
        means = [f"{np.mean([row[method] for row in chosen]):.2f}" for method in methods]
        caught = np.mean([row["caught"] for row in chosen])
        print(f"| {fault} |", " | ".join(means), f"| {caught:.0%} |")


if __name__ == "__main__":
    main()
