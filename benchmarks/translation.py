"""Thick slices to thin ones: medar's translation against a U-Net regression of equal size and time.

Both are trained by the same loop, optimiser and seconds of processor time, on volumes of which the
source is simulated (`medar.data.source.Degradation`). Each learning rate is first tried for
--tuning seconds with the first seed; the best in validation is then trained for --seconds with each
seed. The generator's tokenizer is taken as it is: its training is not counted, nor is encoding,
whose time is printed. Held-out volumes of the split `test` are translated; the
U-Net has a parameter count near the generator's.

    OMP_NUM_THREADS=1 python benchmarks/translation.py hippocampus-mr PREPARED --out OUT \
        [--thickness 4] [--noise 0] [--seconds 60] [--tuning 30] [--rates 0.001 0.003] \
        [--seeds 0 1 2]

Rows: the source itself; the real volume; its reconstruction from tokens, the ceiling of a generator
over them; the U-Net; one sample of the generator, with and
without the tokenizer's detail decoder; the mean of --draws samples. PSNR and SSIM over the whole
volume in [-1, 1], means over cases; the Frechet distance on `radiomics-v2` from the training
volumes, biased upward for few volumes: compare rows of one table only.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.regression import RegressionTask, unet_of
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.data.source import Degradation
from medar.environment import environment
from medar.errors import MedarError
from medar.evaluation.extractors import make_extractor
from medar.evaluation.extractors.features import feature_set
from medar.evaluation.extractors.handcrafted import RADIOMICS
from medar.evaluation.frechet import Reference
from medar.evaluation.similarity import ssim
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.maps import source_channels
from medar.generator.sampling import decode_sample, sample_and_decode
from medar.generator.settings import GeneratorSettings, SamplingSettings
from medar.generator.training import make_task
from medar.recipes.configs import find_config
from medar.settings import load_yaml
from medar.tokenizer.encoding import encode_data_set
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TokenDataset
from medar.training import fit
from medar.training.settings import TrainingSettings

AT_THE_END = 1_000_000
"""Steps between evaluations: only the last weights are evaluated."""


class Judge:
    """Scores translated volumes against the real ones of the split `test`.

    Args:
        data: the folder of prepared cases.
    """

    def __init__(self, data: Path) -> None:
        self.extractor = make_extractor(RADIOMICS)
        train, self.real = (_images(data, split) for split in ("train", "test"))
        features = self._features(train)
        self.reference = Reference(features, feature_set(RADIOMICS, features).noticeable)

    def __call__(self, row: str, made: Tensor, **more: Any) -> dict[str, Any]:
        """PSNR, SSIM and Frechet distance of translated volumes, (B, 1, X, Y, Z)."""
        squares = (made - self.real).square().flatten(1).mean(1).clamp(min=1e-12)
        found = {
            "row": row,
            **more,
            "psnr": float((10 * (4 / squares).log10()).mean()),
            "ssim": float(ssim(made, self.real).mean()),
            "frechet": self.reference.distance(self._features(made)),
        }
        print(json.dumps(found), flush=True)
        return found

    def _features(self, volumes: Tensor) -> np.ndarray:
        parts = [self.extractor.compute(part).double().numpy() for part in volumes.split(8)]
        return np.concatenate(parts)


class Translator:
    """A method with its trainings: the generator, or the U-Net.

    Args:
        options: the command line.
        settings: of the generator; both are trained by `settings.training`.
        unet: of how many parameters; None for the generator.
    """

    def __init__(
        self, options: argparse.Namespace, settings: GeneratorSettings, unet: int | None = None
    ) -> None:
        self.options, self.settings, self.unet = options, settings, unet
        self.name = "generator" if unet is None else "unet"

    def best_rate(self) -> float:
        """The learning rate that is best in validation after a short training."""
        values = {}
        for rate in self.options.rates:
            _, values[rate], _ = self.trained(
                "tuning", self.options.seeds[0], rate, self.options.tuning
            )
        print(json.dumps({"method": self.name, "validation": values}), flush=True)
        return min(values, key=values.__getitem__)

    def trained(self, phase: str, seed: int, rate: float, seconds: float) -> tuple[Any, float, int]:
        """The trained model, its validation metric, and the number of steps."""
        training = replace(
            self.settings.training, seed=seed, learning_rate=rate, minutes=seconds / 60
        )
        task = self._task(training)
        out = self.options.out / f"{phase}-{self.name}-{seed}-{rate:g}"
        outcome = fit(task, training, out, resume="never", clock=time.process_time)
        return task.model.eval(), outcome.metrics[task.metric], outcome.step

    def _task(self, training: TrainingSettings) -> Any:
        if self.unet is None:
            settings = replace(self.settings, training=training)
            return make_task(settings, self.options.out / "tokens")
        torch.manual_seed(training.seed)
        tokens, seed = self.settings.tokens, training.seed
        augmentation = tokens.augmentation if tokens.variants else None
        train, validation = (
            PreparedDataset(
                self.options.data, split=split, augmentation=change, seed=seed, labels=False
            )
            for split, change in (("train", augmentation), ("val", None))
        )
        degradation = self.settings.tokens.degradation
        assert degradation is not None
        size = self.settings.data.batch_size
        return RegressionTask(unet_of(self.unet), train, validation, degradation, size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, translate, and print a line of JSON per row; OUT/rows.json holds them all."""
    options = parse(arguments)
    if (options.out / "rows.json").exists():
        raise MedarError(f"{options.out}: holds rows.json of an earlier run; name a new folder")
    torch.set_num_threads(1)
    settings = settings_of(options)
    tokenizer = Tokenizer.from_pretrained(options.model, "cpu")
    began = time.process_time()
    encode_data_set(options.data, options.out / "tokens", tokenizer, **settings.encoding())
    print(json.dumps({"encoding_s": time.process_time() - began}), flush=True)
    tokens = TokenDataset(options.out / "tokens", split="test", variant=0, maps=True)
    sources = torch.stack([tokens.map(index) for index in range(len(tokens))]).float()
    judge = Judge(options.data)
    rows = [judge("source", sources[:, None]), judge("real", judge.real)]
    rows += reconstructed(tokenizer, tokens, judge)
    ours = Translator(options, settings)
    parameters = trainable(ours._task(settings.training).model)
    methods = (ours, Translator(options, settings, unet=parameters))
    rates = [method.best_rate() for method in methods if options.seeds]
    for seed in options.seeds:
        for method, rate in zip(methods, rates, strict=True):
            model, metric, steps = method.trained("final", seed, rate, options.seconds)
            about = {
                "seed": seed, "rate": rate, "steps": steps, "validation": metric,
                "parameters": trainable(model),
            }  # fmt: skip
            if isinstance(model, Generator):
                rows += translated(model, tokenizer, sources, judge, options.draws, about)
            else:
                with torch.no_grad():
                    made = torch.cat([model(one[None, None]) for one in sources])
                rows.append(judge("unet", made.clamp(-1, 1), **about))
    document = {"rows": rows, "options": vars(options), "environment": environment()}
    (options.out / "rows.json").write_text(json.dumps(document, default=str))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="tokenizer, with its plan")
    parser.add_argument("data", type=Path, help="prepared by that plan")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="hippocampus_mr", help="of the generator")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the configuration")
    parser.add_argument("--thickness", type=float, default=4.0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tuning", type=float, default=30.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.003])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: no training")
    parser.add_argument("--draws", type=int, default=4)
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace) -> GeneratorSettings:
    """The generator's configuration with sources, evaluated once at its end."""
    overrides = [
        "condition.map=source",
        "data.previews=0",
        f"training.evaluate_every={AT_THE_END}",
        f"training.save_every={AT_THE_END}",
        *options.overrides,
    ]
    file = find_config(options.config, "generator")
    settings = load_yaml(GeneratorSettings, file, overrides)
    low = Degradation(slice_thickness=options.thickness, noise=options.noise)
    return replace(settings, tokens=replace(settings.tokens, degradation=low))


@torch.no_grad()
def reconstructed(tokenizer: Tokenizer, tokens: TokenDataset, judge: Judge) -> list[dict[str, Any]]:
    """The rows of real volumes, decoded from their tokens, without and with detail."""
    rows = []
    for detail in ("none", *(("auto",) if tokenizer.detail is not None else ())):
        made = []
        for index in range(len(tokens)):
            latent = tokenizer.latent(tokens.pyramid(index)[:1])
            made.append(torch.from_numpy(decode_sample(tokenizer, latent, index, detail)[0]))
        name = "reconstruction" if detail == "none" else "reconstruction with detail"
        rows.append(judge(name, torch.stack(made)))
    return rows


def translated(
    model: Generator,
    tokenizer: Tokenizer,
    sources: Tensor,
    judge: Judge,
    draws: int,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """The rows of a generator: one sample, the same with detail, and the mean of several."""
    map_ = source_channels(sources)
    condition = Condition(attributes=torch.empty(len(sources), 0), map=map_)

    def sampled(draw: int, detail: Any) -> Tensor:
        seeds = range(draw * len(sources), (draw + 1) * len(sources))
        settings = SamplingSettings(detail=detail)
        made = sample_and_decode(model, tokenizer, condition, seeds, settings)
        return torch.from_numpy(np.stack([image for _, image, _ in made]))

    drawn = [sampled(draw, "none") for draw in range(draws)]
    mean = torch.stack(drawn).mean(0)
    rows = [judge("sample", drawn[0], **about), judge(f"mean of {draws}", mean, **about)]
    if tokenizer.detail is not None:
        rows.append(judge("sample with detail", sampled(0, "auto"), **about))
    return rows


def trainable(model: torch.nn.Module) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _images(data: Path, split: Any) -> Tensor:
    dataset = PreparedDataset(data, split=split, labels=False)
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))])


if __name__ == "__main__":
    main()
