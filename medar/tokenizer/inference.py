"""Whole volumes through a trained tokenizer: prepared, encoded, decoded, taken back.

What differs between models is the plan's mode. In volume mode each volume becomes one array of the
plan's size, and what lies outside it cannot be reconstructed. In patch mode a volume keeps its
extent: overlapping windows of the plan's size are reconstructed one by one and blended (MONAI's
sliding window with Gaussian weights).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.data.intensity import Window
from medar.data.plan import Plan
from medar.data.preparation import Trace, prepare_image, restore_image, restore_label
from medar.devices import DeviceName, device_of, to_device
from medar.errors import MedarError
from medar.model_folder import find_model
from medar.tokenizer.network import Decoder
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tiles import DecodedMap, decode_tiled
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Shape3, Volume, resample

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]

BUDGET = 4 << 30
"""Bytes that one run of the decoder may take; larger latents are decoded by tiles."""

ALIVE = 6
"""Float32 features of the decoder at its finest level that are in memory at once, in multiples of
its width: 5.1 to 6.0 measured (widths 16 and 8, 96 cubed voxels, on a CPU)."""

OVERLAP = 0.25
"""Share of a window that it has in common with its neighbour, in patch mode."""

UNITS = Window(low=0.0, high=1000.0)
"""Intensities of a volume whose plan measures a window on each volume, where no volume is known."""


class Inferred(NamedTuple):
    """A decoded volume on the plan's grid."""

    image: Array
    """(C, X, Y, Z), about [-1, 1]."""
    label: Labels | None
    """(1, X, Y, Z) of the plan's label values; None without a label head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructed:
    """A volume after the whole way, on its own grid and in its own intensities."""

    image: Volume
    label: Volume | None
    psnr: float
    """dB, within the plan's field of view; see `psnr_within`."""
    outside: float
    """Share of the volume's voxels that the plan's grid did not reach."""


def plan_of(tokenizer: Tokenizer) -> Plan:
    """The plan that takes files to the tokenizer and back.

    Raises:
        MedarError: it has none, or one that its network does not fit.
    """
    plan = tokenizer.plan
    if plan is None:
        raise MedarError(
            "the tokenizer has no plan (preprocess.json in its folder), so that no file can be "
            "taken to it; train it on a prepared data set, or copy the file from its model folder"
        )
    channels, labels = len(plan.channels) or 1, tokenizer.config.network.labels
    if channels != tokenizer.config.network.channels or labels not in (0, len(plan.labels)):
        raise MedarError(
            f"the tokenizer's network has {tokenizer.config.network.channels} channels and "
            f"{labels} labels, its plan {channels} and {len(plan.labels)}; one of the two files "
            "config.json and preprocess.json is another model's"
        )
    return plan


def reconstruct(tokenizer: Tokenizer, volume: Volume, upto: int | None = None) -> Reconstructed:
    """Take a volume to tokens and back onto its own grid and intensities.

    Args:
        tokenizer: with its plan; computes on the device that it is on.
        volume: as read from a file.
        upto: use the coarsest `upto` scales only.

    Raises:
        MedarError: no plan, a volume that the plan has no intensity rule for, or `upto` beyond
            the scales.
    """
    plan = plan_of(tokenizer)
    array, trace = prepare_image(volume, plan)
    inferred = _through(tokenizer, plan, array, upto)
    image = restore_image(inferred.image, trace)
    label = restore_label(inferred.label, trace) if inferred.label is not None else None
    inside = field_of_view(trace)
    return Reconstructed(
        image=image,
        label=label,
        psnr=psnr_within(inside, volume, image, trace.windows),
        outside=float(1 - inside.mean()),
    )


def decode(
    tokenizer: Tokenizer, pyramid: TokenPyramid, upto: int | None = None, budget: int = BUDGET
) -> DecodedMap:
    """Decode a pyramid, by tiles where the decoder would need more than `budget` bytes.

    The result is the same either way (see `medar.tokenizer.tiles`).

    Raises:
        MedarError: a pyramid of another tokenizer, or `upto` beyond its scales.
    """
    latent = tokenizer.latent(pyramid.to(device_of(tokenizer)), upto)
    x, y, z = latent.shape[2:]
    tile = tile_within(tokenizer.decoder, (x, y, z), budget // len(latent))
    return decode_tiled(tokenizer.decoder, latent, tile)


def inferred_from(decoded: DecodedMap, plan: Plan) -> Inferred:
    """A decoded batch of one as arrays, its classes turned into the plan's label values."""
    values = None
    if decoded.classes is not None:
        named = np.array([0, *plan.labels], dtype=plan.label_dtype)
        values = named[decoded.classes[0].cpu().numpy()]
    return Inferred(decoded.volume[0].float().cpu().numpy(), values)


def tile_within(decoder: Decoder, latent: Shape3, budget: int) -> Shape3:
    """Sites of the largest tile, halved along its longest side, whose decoding fits a budget.

    Tiles are not cut below the decoder's reach: margins would cost more than they save.
    """
    factors, reach = decoder.config.downsampling, decoder.reach
    tile = list(latent)
    while True:
        axes = zip(tile, reach, latent, factors, strict=True)
        sides = [min(t + 2 * r, n) * f for t, r, n, f in axes]
        sites = math.prod(sides) // math.prod(decoder.config.fold)
        needed = sites * decoder.config.width * ALIVE * 4
        longest = max(range(3), key=lambda axis: tile[axis] / reach[axis])
        if needed <= budget or tile[longest] <= reach[longest]:
            x, y, z = tile
            return x, y, z
        tile[longest] = -(-tile[longest] // 2)


def field_of_view(trace: Trace) -> npt.NDArray[np.bool_]:
    """(X, Y, Z) of the volume's own grid: which voxels the plan's grid reached."""
    ones = np.ones((1, *trace.target.shape), np.float32)
    reached = Volume(array=ones, affine=trace.target.affine)
    inside = resample(reached, trace.source, interpolation="nearest", fill=0.0).array[0]
    return np.asarray(inside > 0.5)


def psnr_within(
    inside: npt.NDArray[np.bool_], before: Volume, after: Volume, windows: tuple[Window, ...]
) -> float:
    """Peak signal-to-noise ratio in dB over the voxels `inside`, all channels together.

    Both volumes are clipped to the intensity windows, whose width is the peak: what lies outside
    them is not the network's to reconstruct. Infinite where the two are equal.
    """
    errors = [
        window.normalise(b[inside]) - window.normalise(a[inside])
        for window, b, a in zip(windows, before.array, after.array, strict=True)
    ]
    square = float(np.mean(np.square(errors, dtype=np.float64)))
    return 10 * math.log10(4 / square) if square > 0 else math.inf


def load_tokenizer(path: str | Path, device: DeviceName = "auto") -> Tokenizer:
    """A trained tokenizer on a device, with a plan that takes files to it and back.

    Args:
        path: its folder, or the run's.
        device: "auto" is CUDA where there is one.

    Raises:
        MedarError: there is none, it has no plan, or there is no such device.
    """
    tokenizer = Tokenizer.from_pretrained(find_model(path, "tokenizer"))
    plan_of(tokenizer)
    return to_device(tokenizer, device)


def _through(tokenizer: Tokenizer, plan: Plan, array: Array, upto: int | None) -> Inferred:
    """A prepared array, (C, X, Y, Z), to tokens and back."""
    batch = torch.from_numpy(array.copy())[None].to(device_of(tokenizer))
    if array.shape[1:] == plan.size:
        return inferred_from(decode(tokenizer, tokenizer.encode(batch), upto), plan)
    return inferred_from(_by_windows(tokenizer, batch, upto), plan)


def _by_windows(tokenizer: Tokenizer, batch: Tensor, upto: int | None) -> DecodedMap:
    """(1, C, X, Y, Z) of any sides, by overlapping windows, chances of the classes blended too."""
    from monai.inferers import sliding_window_inference

    def window(part: Tensor) -> tuple[Tensor, ...]:
        decoded = tokenizer.decode(tokenizer.encode(part), upto)
        if decoded.logits is None:
            return (decoded.volume,)
        return decoded.volume, decoded.logits.softmax(1)

    blended = sliding_window_inference(
        batch,
        roi_size=tokenizer.config.size,
        sw_batch_size=1,
        predictor=window,
        overlap=OVERLAP,
        mode="gaussian",
        cval=-1.0,
    )
    if isinstance(blended, Tensor):
        return DecodedMap(blended, None)
    volume, *chances = blended
    classes = chances[0].argmax(1, keepdim=True).to(torch.int16) if chances else None
    return DecodedMap(volume, classes)
