"""Stages `train-mr` and `train-ct`: a whole training within the minutes, judged and packed.

The minutes are divided by `FRACTIONS`; settings are those of configs/ for the hippocampus (MR) and
for head and neck (CT), with batches for the device.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import medar
from gpu_stages.journal import Journal
from gpu_stages.measure import peak_mib, start_peak
from medar.data.resolve import is_prepared, prepare_for_training
from medar.packing.card import CardSettings
from medar.packing.pack import pack
from medar.settings import from_dict
from medar.tokenizer.detail_training import train_detail

CONFIGS = {"mr": "hippocampus_mr", "ct": "headneck_ct"}
CARDS = {"mr": "hippocampus-mr", "ct": "headneck-ct"}
FRACTIONS = {"tokenizer": 0.3, "detail": 0.1, "generator": 0.35}
"""Of the minutes; the rest is for encoding, sampling, judging and packing."""
BATCHES = {"tokenizer": 32, "detail": 16, "generator": 64}
VARIANTS = 64
SAMPLES = 64

TINY: dict[str, dict[str, Any]] = {
    "plan": {"size": (16, 16, 16), "downsampling": (4, 4, 4), "mode": "volume"},
    "tokenizer": {
        "model": {
            "width": 4,
            "width_multipliers": [1, 2],
            "scales": 2,
            "codebook": {"kind": "fsq", "size": 64, "width": 4},
        },
        "data": {"batch_size": 2},
    },
    "detail": {"model": {"widths": [4, 8], "steps": 1}, "data": {"batch_size": 2}},
    "generator": {"model": {"depth": 1, "head_width": 8}, "data": {"batch_size": 2, "previews": 0}},
}

PHANTOMS = {
    "title": "Phantoms",
    "makes": "synthetic torsos without anatomy of a person",
    "data": "phantoms made by medar",
    "licence": "Apache-2.0",
    "split": "60 % to train, 20 % to validate, 20 % to test, by subject",
    "limits": ["A test of the machinery; the volumes have no use."],
    "citation": "none",
}
"""What the card of a training on phantoms states."""


def run(
    journal: Journal,
    device: torch.device,
    *,
    modality: str,
    data: Path | None,
    out: Path,
    tiny: bool,
) -> None:
    """All steps; each needs the ones before it, so that the first failure ends the stage."""
    minutes = journal.left / 60
    settings = {
        part: settings_of(part, modality, fraction * minutes, device, tiny=tiny)
        for part, fraction in FRACTIONS.items()
    }
    prepared = out / "prepared"
    samples, variants = (4, 1) if tiny else (SAMPLES, VARIANTS)
    plan = TINY["plan"] if tiny else settings["tokenizer"].get("plan", {})
    if data is not None and is_prepared(data):
        prepared = data
    else:
        step = partial(prepare, data, prepared, modality, plan)
        if journal.attempt("prepare", step) is None:
            return
    tokenizer, tokens, generator = out / "tokenizer", out / "tokens", out / "generator"
    steps = {
        "tokenizer": lambda: trained(
            device,
            lambda: medar.train_tokenizer(settings["tokenizer"], prepared, tokenizer),
        ),
        "detail": lambda: trained(
            device,
            lambda: train_detail(settings["detail"], tokenizer, prepared, out / "detail"),
        ),
        "encode": lambda: encode(
            prepared, tokens, out / "detail", settings["generator"], variants, device
        ),
        "generator": lambda: trained(
            device,
            lambda: medar.train_generator(settings["generator"], tokens, generator),
        ),
        "evaluate": lambda: evaluate(generator, prepared, out / "samples", samples, device),
        "pack": lambda: packed(
            out / "bundle", card_of(modality, minutes, data is None), generator, prepared, samples
        ),
    }
    for name, step in steps.items():
        if journal.attempt(name, step) is None:
            return


def settings_of(
    part: str, modality: str, minutes: float, device: torch.device, *, tiny: bool
) -> dict[str, Any]:
    """The settings of one training, as a mapping."""
    if tiny:
        training = {"steps": 4, "evaluate_every": 4, "precision": "fp32", "learning_rate": 2e-3}
        values = TINY[part]
    else:
        values = yaml.safe_load(medar.find_config(CONFIGS[modality], part).read_text())
        every = {"evaluate_every": 1000, "save_every": 1000, "log_every": 100}
        training = {**values["training"], **every}
        training["precision"] = "auto"
        data = {**values.get("data", {}), "workers": 12 if device.type == "cuda" else 0}
        values = {**values, "data": {**data, "batch_size": BATCHES[part]}}
    return {**values, "training": {**training, "minutes": minutes, "device": device.type}}


def prepare(data: Path | None, out: Path, modality: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Prepare a data set, or phantoms."""
    fractions = None
    if data is None:
        data, fractions = out.parent / "phantoms", (0.6, 0.2, 0.2)
        kind: Any = modality
        medar.write_phantoms(data, n=10, modality=kind, spacing=20.0)
    manifest = medar.read_manifest(data, **({"fractions": fractions} if fractions else {}))
    folder = prepare_for_training(manifest, plan, out, workers=1 if fractions else None)
    return {"cases": len(medar.PreparedDataset(folder, split=None).prepared)}


def trained(device: torch.device, train: Any) -> dict[str, Any]:
    """Steps, seconds and the last evaluation of a training."""
    start_peak(device)
    outcome = train()
    metrics = {name: value for name, value in outcome.metrics.items() if "/" not in name}
    return {
        "steps": outcome.step,
        "training_seconds": outcome.elapsed,
        "best": outcome.best,
        "metrics": metrics,
        "peak_mib": peak_mib(device),
    }


def encode(
    data: Path,
    out: Path,
    tokenizer: Path,
    settings: dict[str, Any],
    variants: int,
    device: torch.device,
) -> dict[str, Any]:
    """All cases and their variants, with the augmentation of the generator's settings."""
    drawn = settings.get("tokens", {}).get("augmentation")
    augmentation = from_dict(medar.Augmentation, drawn, "tokens.augmentation") if drawn else None
    name: Any = device.type
    done = medar.encode_data_set(
        data, out, tokenizer, variants=variants, augmentation=augmentation, device=name
    )
    return {"cases": done.made + done.kept, "variants": variants}


def evaluate(
    generator: Path, prepared: Path, out: Path, samples: int, device: torch.device
) -> dict[str, Any]:
    """Samples as files, and their distances with the floors."""
    name: Any = device.type
    synthesizer = medar.Synthesizer.from_pretrained(generator, name)
    for k, sample in enumerate(synthesizer(n=samples, seed=0)):
        medar.write_nifti(out / f"sample_{k:04d}.nii.gz", sample.image)
    volumes = medar.read_generated(medar.generated_files(out), synthesizer.plan)
    report = medar.evaluate_generation(volumes, prepared, split="held-out", device=device)
    distances = {
        extractor: {
            "frechet": one.frechet,
            "frechet_floor": one.frechet_floor,
            "frechet_samples": one.frechet_samples,
        }
        for extractor, one in report.distances.items()
    }
    return {
        "samples": report.volumes,
        "held_out": report.held_out,
        "distances": distances,
        "ms_ssim": report.ms_ssim,
        "ms_ssim_real": report.ms_ssim_real,
        "power_ratio_thirds": report.power_ratio_thirds,
        "notes": report.notes,
    }


def card_of(modality: str, minutes: float, phantoms: bool) -> CardSettings:
    """The card of pipelines/cards, with the time and hardware of this training."""
    path = Path(__file__).parents[2] / "pipelines" / "cards" / f"{CARDS[modality]}.yaml"
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    stated = {
        **yaml.safe_load(path.read_text()),
        "training": f"{minutes:.1f} minutes in all, {where}",
    }
    return from_dict(CardSettings, {**stated, **(PHANTOMS if phantoms else {})}, str(path))


def packed(
    out: Path, card: CardSettings, generator: Path, prepared: Path, samples: int
) -> dict[str, Any]:
    """The bundle: float16 weights, the card, and figures measured on the rounded weights."""
    size = pack(out, card, generator=generator, data=prepared, samples=samples)
    return {"bytes": size, "folder": out.name}
