"""The card of a bundle: what its author states in a YAML file, and what was measured."""

from dataclasses import field
from typing import Any

from medar.settings import settings


@settings
class CardSettings:
    """What the author of a bundle states."""

    title: str
    """Such as "Hippocampus MR"."""
    makes: str
    """The volumes that it makes, in one line: modality, body part, voxels, spacing, labels."""
    data: str
    """The data set that it was trained on, and its source."""
    licence: str
    """Of the weights, as the licence of the data demands, in one line."""
    split: str
    """How many cases were trained on and held out, and by what they were split."""
    training: str
    """Time and hardware."""
    limits: tuple[str, ...]
    """What it must not be used for, and what gives its volumes away."""
    citation: str
    """Whom to cite for the data."""
    figures: dict[str, str] = field(default_factory=dict)
    """Further figures by name, such as those over several seeds, with how they were measured."""


TEMPLATE = """# {title}

{makes}. The volumes are synthetic. Not a medical device: for research only.

    medar synthesize {name} out -n 8

## Data

{data}

Split: {split}

## Licence

{licence}

## Training

{training}

{parts}

## Figures

Measured on the weights in this folder: samples and reconstructions beside all held-out volumes,
label maps on those of the split {split_name}. "Real" is what held-out real volumes get in the place
of the model's: a floor for distances, the target for all else. "Volumes" is the number per set.

{table}

{rounding}

{further}## Limits

{limits}

## Citation

{citation}
"""


def render_card(
    name: str, card: CardSettings, parts: dict[str, int], figures: dict[str, Any]
) -> str:
    """A bundle's README.md.

    Args:
        name: of the bundle.
        card: what its author states.
        parts: number of parameters, by kind of model.
        figures: the content of figures.json.
    """
    rows = [
        f"| {one['name']} | {one['value']:.4g} | {_real(one['real'])} | {one['volumes']} |"
        for one in figures["figures"]
    ]
    cost = figures["rounding"]
    further = [f"- {key}: {value}" for key, value in card.figures.items()]
    return TEMPLATE.format(
        name=name,
        title=card.title,
        makes=card.makes.rstrip("."),
        data=card.data.strip(),
        split=card.split.strip(),
        licence=card.licence,
        training=card.training.strip(),
        parts="\n".join(f"- {kind}: {count:,} parameters" for kind, count in parts.items()),
        split_name=figures["split"],
        table="\n".join(["| figure | value | real | volumes |", "|---|---|---|---|", *rows]),
        rounding=(
            f"Weights are stored in float16. That changes {cost['tokens_changed']:.2%} of the "
            f"tokens of held-out volumes, the PSNR of reconstructions from {cost['psnr']:.3f} to "
            f"{cost['psnr_rounded']:.3f} dB, and the probabilities of tokens by a divergence of "
            f"{cost['divergence']:.1e} nats."
        ),
        further="\n".join(["Measured apart:", "", *further, "", ""]) if further else "",
        limits="\n".join(f"- {limit}" for limit in card.limits),
        citation=card.citation.strip(),
    )


def _real(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
