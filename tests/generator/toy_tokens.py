"""A folder of tokens that follow from a class, which is also in the map: "a" or "b"; and settings
to train on them."""

from pathlib import Path
from typing import Any

import torch

from medar.data.cache import ArrayCache
from medar.data.case import Split
from medar.data.source import EACH_VOLUME, Source
from medar.generator.settings import GeneratorSettings
from medar.settings import from_dict
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import MAPS, TOKENIZER, TokenCase, TokenDataset, TokenIndex

CODES = {"a": 2, "b": 9}
"""The token of each class, at all sites of all scales."""
AUGMENTED = 17
"""The token of augmented variants, at all sites of all scales."""
LABELS = {"a": 1, "b": 4}
"""The label of each class, at all voxels."""
INTENSITIES = {"a": -0.5, "b": 0.5}
"""The intensity of each class's source, at all voxels."""
SOURCE = Source(modality="MR", intensity=EACH_VOLUME)
SPLITS: tuple[Split, ...] = ("train", "train", "train", "val")

SETTINGS: dict[str, Any] = {
    "model": {"depth": 2, "head_width": 8, "mlp_ratio": 2.0},
    "condition": {"attributes": ["class"], "map_width": 4},
    "data": {"batch_size": 4, "previews": 0},
    "training": {
        "steps": 6, "precision": "fp32", "device": "cpu", "ema_decay": 0.9, "log_every": 1,
        "evaluate_every": 3, "save_every": 1, "keep_checkpoints": 9, "learning_rate": 0.01,
    },
}  # fmt: skip
CERTAIN: dict[str, Any] = {
    "objective": {
        "corrupted_token_fraction": 0,
        "known_box_fraction": 0,
        "refinement_fraction": 0,
    },
    "condition__drop_probability": 0,
}
"""Nothing in the loss is random."""


def settings(**changes: Any) -> GeneratorSettings:
    """Tiny settings, changed by `section__key=value` or whole sections."""
    values = {name: dict(section) for name, section in SETTINGS.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return from_dict(GeneratorSettings, values, "test")


def write_tokens(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    cases: int = 16,
    noise: float = 0.0,
    maps: bool = False,
    sources: bool = False,
    augmented: bool = False,
) -> Path:
    """Write cases of alternating classes, three quarters of them for training.

    Args:
        folder: the folder to fill.
        tokenizer: the tokenizer whose schedule is used; it is saved next to the tokens.
        cases: number of cases.
        noise: fraction of random tokens.
        maps: whether to write label maps.
        sources: whether to write source volumes, the outermost voxels along x unknown.
        augmented: whether each case has an augmented variant, all of its tokens AUGMENTED.
    """
    plan, schedule = tokenizer.plan, tokenizer.config.schedule
    assert plan is not None
    tokenizer.save_pretrained(folder / TOKENIZER)
    random = torch.Generator().manual_seed(0)
    entries = []
    for number in range(cases):
        class_ = "ab"[number % 2]
        case = TokenCase(
            id=f"c{number}",
            subject=f"c{number}",
            split=SPLITS[number // 2 % 4],
            modality="CT",
            attributes={"class": class_},
            annotated=tuple(plan.labels),
            image=f"image-{number}",
            label=None,
            trace={},
        )
        entries.append(case)
        flat = torch.full((1, schedule.length), CODES[class_])
        other = torch.randint(tokenizer.codebook_size, flat.shape, generator=random)
        flat = torch.where(torch.rand(flat.shape, generator=random) < noise, other, flat)
        if augmented:
            flat = torch.cat([flat, torch.full_like(flat, AUGMENTED)])
        pyramid = TokenPyramid.from_flat(flat, schedule, tokenizer.codebook_size, tokenizer.digest)
        pyramid.save(folder / case.file)
        if maps:
            labels = torch.full((1, *plan.size), LABELS[class_], dtype=torch.int8).numpy()
            ArrayCache(folder / MAPS).put(case.id, labels, {}, whole=True)
        if sources:
            source = torch.full((1, *plan.size), INTENSITIES[class_], dtype=torch.half)
            source[:, 0] = torch.nan
            ArrayCache(folder / MAPS).put(case.id, source.numpy(), {}, whole=True)
    index = TokenIndex(
        tokenizer=tokenizer.digest,
        schedule=schedule,
        codebook_size=tokenizer.codebook_size,
        plan=plan.digest,
        seed=0,
        variants=int(augmented),
        augmentation=None,
        maps=plan.labels if maps else None,
        source=SOURCE if sources else None,
        cases=tuple(entries),
    )
    index.save(folder)
    assert TokenDataset(folder, split="train").schedule == schedule
    return folder
