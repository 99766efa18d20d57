"""Serving from MLflow: a request of plain values in, volumes as the bytes of NIfTI files out.

    generator   seed, n, class, attributes, ... -> per volume: seed, image, label, about
    tokenizer   volume, upto, modality          -> image, label, psnr, outside
    segmenter   volume, mirrors, modality       -> label, about

Files carry affine and intensities in a form that every tool reads. In JSON their bytes are base64,
as MLflow encodes binary columns.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from medar.data.reading import read_for_plan
from medar.errors import MedarError
from medar.files import read_json
from medar.generator.settings import SamplingSettings
from medar.segmentation.files import segment_files
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import PredictionSettings
from medar.settings import PositiveInt, from_dict, settings, to_dict
from medar.synthesis.request import Request
from medar.synthesis.samples import write_samples
from medar.synthesis.synthesizer import Synthesizer, seeds_from
from medar.tokenizer.tokenizer import Tokenizer
from medar.tracking.names import Kind, kind_of
from medar.volume import ReadOptions, Volume, read_header, read_volume, write_nifti
from medar.volume.marks import RECONSTRUCTED

Row = dict[str, Any]
Endpoint = Callable[[Mapping[str, Any]], list[Row]]
"""From a request to the rows of the response."""

Column = tuple[str, str, bool]
"""Name, MLflow type ("any" for several), whether it is required."""

COLUMNS: dict[Kind, tuple[tuple[Column, ...], tuple[Column, ...]]] = {
    "generator": (
        (
            ("seed", "any", True),
            ("n", "any", False),
            ("class", "string", False),
            ("attributes", "any", False),
            ("sampling", "any", False),
            ("modality", "string", False),
            ("mask", "binary", False),
            ("inpaint", "binary", False),
            ("region", "binary", False),
            ("upscale", "binary", False),
        ),
        (
            ("seed", "long", True),
            ("image", "binary", True),
            ("label", "binary", False),
            ("about", "string", True),
        ),
    ),
    "segmenter": (
        (("volume", "binary", True), ("mirrors", "string", False), ("modality", "string", False)),
        (("label", "binary", True), ("about", "string", True)),
    ),
    "tokenizer": (
        (("volume", "binary", True), ("upto", "any", False), ("modality", "string", False)),
        (
            ("image", "binary", True),
            ("label", "binary", False),
            ("psnr", "double", False),
            ("outside", "double", True),
        ),
    ),
}
"""Inputs and outputs by kind of model. Integers in requests are "any": with any other type MLflow
would drop the fraction of 1.5 rather than refuse it."""

GZIP = b"\x1f\x8b"

MAX_VOXELS = 1 << 28
"""Of a volume in a request: 512 x 512 x 1024, or 1 GiB in float32. A few kilobytes of gzip data can
state many more."""
MAX_VOLUMES = 100
"""Volumes per request; all of them are in memory at once."""


@settings
class GeneratorRequest:
    """A request for synthetic volumes; see `Request` for the fields that are not described here."""

    seed: int
    """Seed of the first volume; each further volume has the next one."""
    n: PositiveInt = 1
    """Number of volumes, at most `MAX_VOLUMES`."""
    class_: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    """Overrides of the model folder's `SamplingSettings`."""
    modality: str | None = None
    mask: bytes | None = None
    inpaint: bytes | None = None
    region: bytes | None = None
    upscale: bytes | None = None


@settings
class TokenizerRequest:
    """A volume to reconstruct."""

    volume: bytes
    upto: int | None = None
    """Use the coarsest scales only."""
    modality: str | None = None


@settings
class SegmenterRequest:
    """A volume to segment."""

    volume: bytes
    mirrors: str | None = None
    """"none" or some of "xyz"; default: the axes that the network was trained with."""
    modality: str | None = None


def signature(kind: Kind) -> Any:
    """Inputs and outputs of a model, which MLflow checks."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    def schema(columns: tuple[Column, ...]) -> Any:
        return Schema(
            [
                ColSpec(AnyType() if type_ == "any" else type_, name, required=required)
                for name, type_, required in columns
            ]
        )

    inputs, outputs = COLUMNS[kind]
    return ModelSignature(inputs=schema(inputs), outputs=schema(outputs))


def load_endpoint(folder: str | Path) -> Endpoint:
    """Load the model in a folder for serving.

    Raises:
        MedarError: the folder holds no model, or a damaged one.
    """
    kind = kind_of(Path(folder))
    if kind == "tokenizer":
        return TokenizerEndpoint(Tokenizer.from_pretrained(folder, "auto"))
    if kind == "segmenter":
        return SegmenterEndpoint(Segmenter.from_pretrained(folder))
    return GeneratorEndpoint(Synthesizer.from_pretrained(folder))


class GeneratorEndpoint:
    """Returns synthetic volumes, as the files that `medar synthesize` writes."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._synthesizer = synthesizer

    def __call__(self, request: Mapping[str, Any]) -> list[Row]:
        """One row per volume: seed, image, label (None without a label head), about (JSON).

        Raises:
            MedarError: the model does not support the request.
        """
        values = _plain(request)
        if "class" in values:
            values["class_"] = values.pop("class")
        request_ = from_dict(GeneratorRequest, values, "request")
        if request_.n > MAX_VOLUMES:
            raise MedarError(f"n must be at most {MAX_VOLUMES} per request, got {request_.n}")
        seeds = seeds_from(request_.seed, request_.n)
        with _scratch() as scratch:
            job = self._synthesizer.job(self._request(request_, scratch))
            images, _ = write_samples(scratch / "samples", self._synthesizer, job, seeds)
            return [_sample(image) for image in images]

    def _request(self, request_: GeneratorRequest, scratch: Path) -> Request:
        own = to_dict(self._synthesizer.sampling)
        plan = self._synthesizer.plan

        def image(name: str) -> Volume | None:
            content = getattr(request_, name)
            if content is None:
                return None
            return read_for_plan(plan, _file(scratch, name, content), modality=request_.modality)

        def labels(name: str) -> Volume | None:
            content = getattr(request_, name)
            if content is None:
                return None
            return read_volume(_file(scratch, name, content), labels=True)

        return Request(
            class_=request_.class_,
            attributes=request_.attributes,
            modality=request_.modality,
            mask=labels("mask"),
            inpaint=image("inpaint"),
            region=labels("region"),
            upscale=image("upscale"),
            sampling=from_dict(SamplingSettings, {**own, **request_.sampling}, "request: sampling"),
        )


class TokenizerEndpoint:
    """Returns reconstructions, as `medar tokenizer reconstruct` computes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, request: Mapping[str, Any]) -> list[Row]:
        """One row: image, label (None without a label head), psnr in dB, outside.

        Raises:
            MedarError: not a volume, or one that the plan has no intensity rule for.
        """
        request_ = from_dict(TokenizerRequest, _plain(request), "request")
        plan = self._tokenizer.require_plan()
        with _scratch() as scratch:
            path = _file(scratch, "volume", request_.volume)
            volume = read_for_plan(plan, path, modality=request_.modality)
            made = self._tokenizer.reconstruct(volume, request_.upto)
            written = scratch / "made.nii.gz"
            write_nifti(written, made.image, grid="source", description=RECONSTRUCTED)
            image, label = written.read_bytes(), None
            if made.label is not None:
                write_nifti(written, made.label, grid="source", description=RECONSTRUCTED)
                label = written.read_bytes()
        psnr = made.psnr if math.isfinite(made.psnr) else None
        return [{"image": image, "label": label, "psnr": psnr, "outside": made.outside}]


class SegmenterEndpoint:
    """Returns label maps, as `medar segment` computes them."""

    def __init__(self, model: Segmenter) -> None:
        self._model = model

    def __call__(self, request: Mapping[str, Any]) -> list[Row]:
        """One row: label, about (JSON).

        Raises:
            MedarError: not a volume, or one that the plan has no intensity rule for.
        """
        request_ = from_dict(SegmenterRequest, _plain(request), "request")
        settings = PredictionSettings.from_options(request_.mirrors)
        with _scratch() as scratch:
            path, made = _file(scratch, "volume", request_.volume), scratch / "label.nii.gz"
            list(segment_files(self._model, path, made, settings, modality=request_.modality))
            about = read_json(made.with_name("label.json"))
            about.pop("image")  # a temporary file
            return [{"label": made.read_bytes(), "about": json.dumps(about, ensure_ascii=False)}]


def _sample(image: Path) -> Row:
    """A sample that was written, as a row."""
    record = read_json(image.with_name(image.name.replace(".nii.gz", ".json")))
    label = record["label"] and image.with_name(record["label"]).read_bytes()
    about = json.dumps(record, ensure_ascii=False)
    return {"seed": record["seed"], "image": image.read_bytes(), "label": label, "about": about}


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the files of one request; errors name them as parts of the request."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except MedarError as error:
            raise MedarError(str(error).replace(f"{folder}{os.sep}", "request: ")) from error


def _file(folder: Path, name: str, content: bytes) -> Path:
    """Write the bytes of a volume to a file, with a suffix that fits its compression."""
    path = folder / f"{name}.nii{'.gz' if content.startswith(GZIP) else ''}"
    path.write_bytes(content)
    try:
        header = read_header(path, ReadOptions(channels=True, assume_spacing="header"))
    except MedarError:
        return path  # reading the voxels reports it
    if (voxels := math.prod(header.grid.shape) * header.channels) > MAX_VOXELS:
        raise MedarError(
            f"request: {name} must have at most {MAX_VOXELS} voxels, got {voxels}; crop it, or use "
            "the command line"
        )
    return path


def _plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table as plain values, without missing ones."""
    values: dict[str, Any] = {}
    for name, value in request.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if plain is None or (isinstance(plain, float) and math.isnan(plain)):
            continue
        if name in ("attributes", "sampling") and not isinstance(plain, dict):
            raise MedarError(
                f"request: {name} must be an object, got {plain!r}; send requests as a list "
                '([{"seed": 0, "attributes": {"age": 60}}])'
            )
        values[name] = plain
    return values
