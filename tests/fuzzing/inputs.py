"""The inputs by number: which file is mutated and how, how it is read, and what must not change."""

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing.mutations import Mutation, mutate

from medar.cli.main import main
from medar.errors import MedarError


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input."""

    name: str
    weight: int
    folder: str
    """Of the originals, copied for each input."""
    files: tuple[str, ...]
    """Glob patterns of the files to mutate."""
    read: Callable[[Path, Path], Any]
    """Read the mutated file in the copied folder as a user would; returns the truth it found, which
    is compared with that of the original where `covers` says so, or None."""
    covers: Callable[[Path, bytes, Mutation], bool] = lambda path, original, mutation: False
    """Whether a mutation touched nothing but what a checksum covers, or left voxels out: reading
    must fail, or find what is in the original."""


def volume(folder: Path, path: Path) -> str:
    """Voxels and geometry of a volume file, or of the header that names it."""
    from medar.volume import read_volume

    owner = {
        "raw.raw": "raw.nhdr", "a.raw.gz": "a.nhdr", "a.zraw": "a.mhd",
        "pair.hdr": "pair.img",
    }.get(path.name, path.name)  # fmt: skip
    if path.name.startswith("s") and path.suffix in (".raw", ".gz"):
        owner = "pattern.mhd" if path.suffix == ".raw" else "list.nhdr"
    if path.name == "raw.raw" and random.Random(path.stat().st_size).random() < 0.5:
        owner = "raw.mhd"
    read = read_volume(folder / owner)
    content = read.array.tobytes() + read.affine.round(6).tobytes() + repr(read.shape).encode()
    return hashlib.sha256(content).hexdigest()


def series(folder: Path, path: Path) -> str:
    """Voxels and geometry of a DICOM folder."""
    from medar.volume import read_volume

    read = read_volume(folder)
    content = read.array.tobytes() + read.affine.round(6).tobytes() + repr(read.shape).encode()
    return hashlib.sha256(content).hexdigest()


def segmentations(folder: Path, path: Path) -> str:
    """Voxels, geometry and names of a label map of two DICOM segmentations, on their series."""
    from medar.data.reading import read_image, read_label
    from medar.data.sources import read_manifest
    from medar.volume import ReadOptions

    command("data", "check", folder, "--json", "--deep", "--workers", 1)
    manifest = read_manifest(folder)
    if manifest.notes:
        raise MedarError(manifest.notes[0])
    image = read_image(manifest.cases[0], ReadOptions())
    label = read_label(manifest.cases[0], ReadOptions(), image, manifest.labels)
    found = [] if label is None else [label.array.tolist(), label.affine.round(6).tolist()]
    return hashlib.sha256(repr([found, manifest.labels]).encode()).hexdigest()


def covers_frames(path: Path, original: bytes, mutation: Mutation) -> bool:
    """A multi-frame file may not lose its end unnoticed, where its pixels are."""
    return mutation.shorter


def covers_voxels(path: Path, original: bytes, mutation: Mutation) -> bool:
    """Compressed bytes have checksums; and no file may lose its end unnoticed."""
    name = path.name
    if name.endswith((".gz", ".zraw")):
        return True
    behind = original.find(b"ElementDataFile = LOCAL") + 24 if name.endswith(".mha") else 0
    if name.endswith(".nrrd"):
        behind = original.find(b"\n\n") + 2
    inside = mutation.first >= behind
    packed = name in ("a.nrrd", "bzip2.nrrd", "a.mha")
    return inside and (packed or (mutation.shorter and not name.endswith((".nhdr", ".mhd"))))


def command(*words: object) -> None:
    """Run `medar`; a traceback passes through, exit codes but 0, 1 and 2 do not."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        if end.code == 2:
            raise MedarError("exit code 2") from end
        if end.code not in (0, 1, None):
            raise RuntimeError(f"exit code {end.code}") from end


def check(folder: Path, path: Path) -> None:
    """`medar data check` of the folder, or of the manifest."""
    target = path if path.suffix == ".jsonl" else folder
    command("data", "check", target, "--json", "--workers", 1)


def prepare(folder: Path, path: Path) -> None:
    """`medar data prepare` by a mutated plan, or of a mutated manifest."""
    target = path if path.suffix == ".jsonl" else folder
    given = ("--plan", folder / "plan.yaml", "--out", folder / "out", "--workers", 1, "--json")
    command("data", "prepare", target, *given)


def prepared(folder: Path, path: Path) -> Any:
    """The items of a prepared data set; or preparing it again, and drawing a case."""
    made = folder / "made"
    if path.suffix == ".b2nd" or random.Random(path.stat().st_size).random() < 0.5:
        from medar.data.loading import PreparedDataset

        data = PreparedDataset(made)
        found = hashlib.sha256()
        for index in range(len(data)):
            for name, value in sorted(data[index].items()):
                found.update(repr((name, value.tolist() if name != "index" else value)).encode())
        return found.hexdigest()
    command("data", "prepare", folder / "raw", "--out", made, "--workers", 1)
    command("data", "show", "case_0", "--data", made, "--out", folder / "x.png")
    return None


def tokenizer(folder: Path, path: Path) -> str:
    """The weights of a tokenizer, after it has encoded and decoded a volume."""
    from medar.tokenizer.tokenizer import Tokenizer

    command("tokenizer", "encode", folder / "in.nii.gz", folder / "out", "--model", folder)
    return _weights(Tokenizer.from_pretrained(folder, "cpu"))


def generator(folder: Path, path: Path) -> str:
    """The weights of a generator and its tokenizer, after a sample was drawn."""
    from medar.synthesis.synthesizer import Synthesizer

    command("synthesize", folder, folder / "out", "--passes", "1")
    loaded = Synthesizer.from_pretrained(folder, "cpu")
    return _weights(loaded.model) + _weights(loaded.tokenizer)


def segmenter(folder: Path, path: Path) -> str:
    """The weights of a segmentation network, after it has segmented a volume."""
    from medar.segmentation.segmenter import Segmenter

    command("segment", folder, folder / "in.nii.gz", folder / "out.nii.gz")
    return _weights(Segmenter.from_pretrained(folder, "cpu"))


def tokens(folder: Path, path: Path) -> str:
    """The tokens and label maps of a folder."""
    from medar.tokenizer.tokens import TokenDataset

    data = TokenDataset(folder, variant=0, maps=True)
    items = [
        (item["indices"].tolist(), item["map"].tolist())
        for item in map(data.__getitem__, range(len(data)))
    ]
    return hashlib.sha256(repr(items).encode()).hexdigest()


def recipe(folder: Path, path: Path) -> None:
    """The plan of a recipe, on earlier records; where these are mutated, its report too."""
    out, configs = folder / "out", folder / "configs"
    name = path.name if path.parent == configs else "demo.yaml"
    kind, modality = ("segmentation", "MR") if name.startswith("segment") else ("synthesis", "CT")
    target = folder / "other" if kind == "segmentation" else out
    given = ("--data", folder / "data", "--out", target, "--modality", modality)
    command("run", kind, configs / name, *given, "--dry-run", "--untracked", "--memory", 40)
    if out in path.parents:
        command("report", out)


def config(folder: Path, path: Path) -> None:
    """Settings of a training, as its command loads them."""
    from medar.generator.settings import GeneratorSettings
    from medar.segmentation.pretext.settings import PretrainSettings
    from medar.segmentation.settings import SegmentationSettings
    from medar.settings import load_yaml, to_dict
    from medar.tokenizer.settings import DetailSettings, TokenizerSettings

    classes: dict[str, Any] = {
        "tokenizer": TokenizerSettings, "detail": DetailSettings, "generator": GeneratorSettings,
        "segmentation": SegmentationSettings,
    }  # fmt: skip
    cls = PretrainSettings if path.name.startswith("pretrain") else classes[path.parent.name]
    json.dumps(to_dict(load_yaml(cls, path)), allow_nan=False, default=str)


def _weights(module: Any) -> str:
    state = {name: value.tolist() for name, value in module.state_dict().items()}
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _ends(*endings: str) -> Callable[[Path, bytes, Mutation], bool]:
    return lambda path, original, mutation: path.name.endswith(endings)


KINDS = (
    Kind(name="NIfTI", weight=20, folder="volumes", files=("*.nii*", "pair.*"), read=volume,
         covers=covers_voxels),
    Kind(name="NRRD", weight=16, folder="volumes",
         files=("*.nrrd", "*.nhdr", "raw.raw", "a.raw.gz", "s*.gz"), read=volume,
         covers=covers_voxels),
    Kind(name="MetaImage", weight=16, folder="volumes", files=("*.mh*", "a.zraw", "s*.raw"),
         read=volume, covers=covers_voxels),
    Kind(name="DICOM", weight=5, folder="dicom/classic", files=("00[0-3].dcm",), read=series),
    Kind(name="DICOM", weight=3, folder="dicom/implicit", files=("00[0-3].dcm",), read=series),
    Kind(name="DICOM", weight=2, folder="dicom/deflated", files=("00[0-3].dcm",), read=series),
    Kind(name="DICOM", weight=3, folder="dicom/packed", files=("00[0-3].dcm",), read=series),
    Kind(name="DICOM", weight=5, folder="dicom/enhanced", files=("a.dcm",), read=series,
         covers=covers_frames),
    Kind(name="DICOM", weight=2, folder="dicom/JPEG", files=("a.dcm",), read=series,
         covers=covers_frames),
    Kind(name="DICOM", weight=2, folder="dicom/JPEG2000", files=("a.dcm",), read=series,
         covers=covers_frames),
    Kind(name="DICOM", weight=2, folder="dicom/RLE", files=("a.dcm",), read=series,
         covers=covers_frames),
    Kind(name="SEG", weight=8, folder="seg", files=("*.dcm",), read=segmentations,
         covers=covers_frames),
    Kind(name="table", weight=7, folder="table", files=("index.csv",), read=check),
    Kind(name="manifest", weight=5, folder="jsonl", files=("manifest.jsonl",), read=check),
    Kind(name="manifest", weight=3, folder="msd", files=("dataset.json",), read=check),
    Kind(name="manifest", weight=3, folder="nnunet", files=("dataset.json",), read=check),
    Kind(name="manifest", weight=2, folder="bids", files=("*.*", "sub-01/anat/*.json"), read=check),
    Kind(name="manifest", weight=3, folder="jsonl", files=("manifest.jsonl",), read=prepare),
    Kind(name="plan", weight=7, folder="plans", files=("plan.yaml",), read=prepare),
    Kind(name="prepared", weight=5, folder="prepared",
         files=("made/*.*", "made/arrays/*.b2nd"), read=prepared, covers=_ends(".b2nd")),
    Kind(name="model", weight=3, folder="tokenizer", files=("*.[jsm]*", "detail/*.*"),
         read=tokenizer, covers=_ends(".safetensors")),
    Kind(name="model", weight=3, folder="generator", files=("*.*", "tokenizer/*.*"),
         read=generator, covers=_ends(".safetensors")),
    Kind(name="model", weight=3, folder="segmenter", files=("model/*.*",), read=segmenter,
         covers=_ends(".safetensors")),
    Kind(name="tokens", weight=6, folder="tokens",
         files=("tokens.json", "cases/c[0-3].*", "maps/c0.*"), read=tokens,
         covers=_ends(".safetensors", ".b2nd")),
    Kind(name="recipe", weight=6, folder="recipes",
         files=("configs/demo.yaml", "configs/ct_128.yaml", "configs/segment_*.yaml",
                "configs/tokenizer/demo.yaml", "configs/generator/demo.yaml", "out/*.json",
                "out/stages/*.json"),
         read=recipe),
    Kind(name="configuration", weight=8, folder="recipes",
         files=("configs/tokenizer/*.yaml", "configs/generator/*.yaml",
                "configs/segmentation/*.yaml", "configs/detail/*.yaml"), read=config),
)  # fmt: skip

FORMS = {".csv": "text", ".tsv": "text", ".json": "json", ".jsonl": "jsonl", ".yaml": "yaml",
         ".nhdr": "text", ".mhd": "text", ".nrrd": "text", ".mha": "text",
         ".md": "text"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input: a mutated copy of a file."""

    kind: Kind
    original: Path
    mutation: Mutation

    def __str__(self) -> str:
        return f"{self.kind.name}, {self.original.name}, {self.mutation.how}"


def make_input(originals: Path, seed: int, number: int, name: str = "") -> Input:
    """The input of a number, of all kinds or those of a name; the same for the same seed."""
    draw = random.Random(f"{seed} {number}")
    kinds = [kind for kind in KINDS if name in ("", kind.name)]
    kind = draw.choices(kinds, [kind.weight for kind in kinds])[0]
    folder = originals / kind.folder
    original = draw.choice(
        sorted({p for glob in kind.files for p in folder.glob(glob) if p.is_file()})
    )
    form = FORMS.get(original.suffix, "bytes")
    return Input(kind=kind, original=original, mutation=mutate(original.read_bytes(), form, draw))


def copied(originals: Path, one: Input, target: Path) -> Path:
    """Copy the folder of an input, with the mutated file; returns that file's path."""
    source = originals / one.kind.folder
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(target)
    shutil.copytree(source, target, copy_function=os.link)
    path = target / one.original.relative_to(source)
    path.unlink()
    path.write_bytes(one.mutation.content)
    return path
