"""The files that are mutated: small ones of every kind that medar reads, made once."""

import bz2
import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

ROOT = Path(__file__).resolve().parents[2]
SIDES = (7, 6, 5)

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
AFFINE[:3, 3] = 10.0, -3.0, 4.0


def make_originals(folder: Path) -> None:
    """Fill a folder, one folder for each kind of input."""
    volumes(folder / "volumes")
    dicom(folder / "dicom")
    seg(folder / "seg")
    data_sets(folder)
    models(folder)
    recipes(folder / "recipes", folder / "table")


def volumes(folder: Path) -> None:
    """One volume in every format and encoding."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    voxels = generator.integers(-900, 900, SIDES).astype(np.int16)
    for name in ("a.nii", "a.nii.gz", "pair.img"):
        kind = nib.Nifti1Pair if name == "pair.img" else nib.Nifti1Image
        nib.save(kind(voxels, AFFINE), folder / name)
    scaled = nib.Nifti2Image(generator.normal(size=SIDES).astype(np.float32), AFFINE)
    scaled.header.set_slope_inter(2.5, -100.0)
    scaled.set_qform(AFFINE, 1)
    nib.save(scaled, folder / "two.nii.gz")
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing((1.0, 1.0, 2.0))
    for name in (
        "a.nrrd",
        "raw.nrrd",
        "a.nhdr",
        "raw.nhdr",
        "a.mha",
        "raw.mha",
        "a.mhd",
        "raw.mhd",
    ):
        sitk.WriteImage(image, str(folder / name), not name.startswith("raw"))
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 7 6 5\n"
        "space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (1,2,3)\nendian: little\n"
    )
    raw = voxels.tobytes(order="F")
    numbers = " ".join(map(str, voxels.ravel(order="F"))).encode()
    for encoding, content in (
        ("bzip2", bz2.compress(raw)), ("ascii", numbers), ("hex", raw.hex().encode()),
    ):  # fmt: skip
        text = f"{head}encoding: {encoding}\n\n"
        (folder / f"{encoding}.nrrd").write_bytes(text.encode() + content)
    slices = [voxels[..., z].tobytes(order="F") for z in range(5)]
    for z, content in enumerate(slices):
        (folder / f"s{z}.raw").write_bytes(content)
        (folder / f"s{z}.gz").write_bytes(gzip.compress(content))
    names = "".join(f"s{z}.gz\n" for z in range(5))
    (folder / "list.nhdr").write_text(f"{head}encoding: gzip\ndata file: LIST\n{names}")
    meta = (
        "NDims = 3\nDimSize = 7 6 5\nElementType = MET_SHORT\nElementSpacing = 1 1 2\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = "
    )
    (folder / "pattern.mhd").write_text(f"{meta}s%d.raw 0 4 1\n")


def dicom(folder: Path) -> None:
    """One volume as classic series and as enhanced files, in several transfer syntaxes."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import pydicom
    from dicom_files import compressed, enhanced, write_classic, write_enhanced
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    stack = np.random.default_rng(2).integers(-900, 900, (4, 40, 44)).astype(np.int16)
    rescale = [(1.0 + k, -1024.0) for k in range(4)]
    for name in ("classic", "implicit", "deflated", "packed"):
        for path in sorted(write_classic(folder / name, stack, rescale=rescale).iterdir()):
            made = pydicom.dcmread(path)
            if name == "packed":
                made = compressed(made, "JPEG2000" if path.stem == "001" else "JPEG", folder)
            if name in ("implicit", "deflated"):
                made.file_meta.TransferSyntaxUID = (
                    ImplicitVRLittleEndian if name == "implicit" else DeflatedExplicitVRLittleEndian
                )
            made.save_as(path, enforce_file_format=True)
    write_enhanced(folder / "enhanced" / "a.dcm", stack, rescale=rescale, order=[2, 0, 3, 1])
    for name in ("JPEG", "JPEG2000", "RLE"):
        (folder / name).mkdir()
        made = enhanced(stack, order=[2, 0, 3, 1])
        if name == "RLE":
            made.compress(RLELossless, generate_instance_uid=False)
        else:
            made = compressed(made, name, folder)
        made.save_as(folder / name / "a.dcm", enforce_file_format=True)


def seg(folder: Path) -> None:
    """A series, and its label map in two DICOM segmentations, of type BINARY and FRACTIONAL."""
    from dicom_files import segmentation, write_classic

    stack = np.random.default_rng(3).integers(-900, 900, (4, 10, 12)).astype(np.int16)
    write_classic(folder / "scan", stack)
    masks = np.zeros((2, *stack.shape), np.uint8)
    masks[0, 1:3, 2:5, 3:9], masks[1, 2:, 6:8, 2:10] = 1, 1
    for number, (mask, type_) in enumerate(zip(masks, ("BINARY", "FRACTIONAL"), strict=True)):
        name, instance = ("liver", "spleen")[number], f"1.2.7.{number}"
        planes = mask if type_ == "BINARY" else mask.astype(float)
        made = segmentation(folder / "scan", planes, [name], type_, instance=instance)
        made.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def data_sets(folder: Path) -> None:
    """Four cases with labels in the layouts of data sets, and prepared."""
    generator = np.random.default_rng(1)
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:4, 2:6, 2:5], label[5:7, 2:6, 2:5] = 1, 2

    def write(path: Path, array: Any) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), path)
        return path.name

    for layout, images, labels, channel in (
        ("table", "images", "labels", ""), ("msd", "imagesTr", "labelsTr", ""),
        ("nnunet", "imagesTr", "labelsTr", "_0000"), ("jsonl", "", "masks", ""),
    ):  # fmt: skip
        for k in range(4):
            voxels = generator.integers(-900, 900, (8, 8, 8)).astype(np.int16)
            write(folder / layout / images / f"case_{k}{channel}.nii.gz", voxels)
            write(folder / layout / labels / f"case_{k}.nii.gz", label)
    rows = [
        f"case_{k},{split},{50 + k},F,liver"
        for k, split in enumerate(["train", "train", "val", "test"])
    ]
    table = "\n".join(["id,split,age,sex,structures", *rows, ""])
    (folder / "table" / "index.csv").write_text(table)
    names = {"0": "background", "1": "liver", "2": "spleen"}
    pairs = [
        {"image": f"./imagesTr/case_{k}.nii.gz", "label": f"./labelsTr/case_{k}.nii.gz"}
        for k in range(4)
    ]
    _write_json(
        folder / "msd" / "dataset.json",
        name="x", modality={"0": "CT"}, labels=names, numTraining=4, numTest=0, training=pairs,
        test=[],
    )  # fmt: skip
    _write_json(
        folder / "nnunet" / "dataset.json",
        channel_names={"0": "CT"}, labels={v: int(k) for k, v in names.items()}, numTraining=4,
        file_ending=".nii.gz",
    )  # fmt: skip
    head = {"medar_manifest": 1, "labels": {"1": "liver", "2": "spleen"}, "channels": ["CT"]}
    cases = [
        {"id": f"case_{k}", "image": f"case_{k}.nii.gz", "label": f"masks/case_{k}.nii.gz",
         "subject": f"s{k}", "modality": "CT", "attributes": {"age": 50 + k}, "annotated": [1],
         "split": "train" if k < 3 else "val"}
        for k in range(4)
    ]  # fmt: skip
    lines = "".join(json.dumps(line) + "\n" for line in [head, *cases])
    (folder / "jsonl" / "manifest.jsonl").write_text(lines)
    for k in (1, 2):
        anat = folder / "bids" / f"sub-0{k}" / "anat"
        write(anat / f"sub-0{k}_T1w.nii.gz", generator.normal(size=(8, 8, 8)).astype(np.float32))
        (anat / f"sub-0{k}_T1w.json").write_text('{"Modality": "MR", "EchoTime": 0.01}')
    _write_json(folder / "bids" / "dataset_description.json", Name="x", BIDSVersion="1.8.0")
    (folder / "bids" / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t30\tF\nsub-02\t40\tM\n"
    )
    _prepare(folder)


def _prepare(folder: Path) -> None:
    from medar.data.plan import Plan
    from medar.data.prepare import prepare
    from medar.data.sources import read_manifest

    plan = Plan(
        spacing=(1.0, 1.0, 2.0), mode="volume", size=(8, 8, 8), downsampling=(2, 2, 2),
        intensity={"CT": {"kind": "window", "low": -1000.0, "high": 1000.0}},  # type: ignore[dict-item]
        labels={1: "liver", 2: "spleen"},
    )  # fmt: skip
    shutil.copytree(folder / "msd", folder / "plans")
    for name in ("plans", "jsonl"):
        plan.save(folder / name / "plan.yaml")
    shutil.copytree(folder / "msd", folder / "prepared" / "raw")
    manifest = read_manifest(folder / "prepared" / "raw", modality="CT")
    prepare(manifest, plan, folder / "prepared" / "made", workers=1)


def models(folder: Path) -> None:
    """A tokenizer, a generator and a segmentation network with random weights; tokens."""
    import sys

    import torch

    from medar.data.plan import Plan
    from medar.segmentation.backbones import BackboneSettings
    from medar.segmentation.segmenter import Segmenter

    for name in ("generator", "synthesis"):
        sys.path.insert(0, str(ROOT / "tests" / name))
    from tiny import tiny_detail, tiny_model, tiny_tokenizer
    from toy_tokens import write_tokens

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    tiny_detail(tokenizer).save_pretrained(folder / "tokenizer")
    write_tokens(folder / "tokens", tokenizer, cases=8, maps=True)
    tiny_model(tokenizer).save_pretrained(folder / "generator", tokenizer)
    plan = Plan.load(folder / "plans" / "plan.yaml")
    network = Segmenter(BackboneSettings(width=4), plan, ()).eval()
    network.save_pretrained(folder / "segmenter" / "model")
    for name in ("segmenter", "tokenizer"):
        shutil.copy(folder / "msd" / "imagesTr" / "case_0.nii.gz", folder / name / "in.nii.gz")


def recipes(folder: Path, data: Path) -> None:
    """The configurations that come with medar, a data set, and a run with records."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(data, folder / "data")
    out = folder / "out"
    (out / "stages").mkdir(parents=True)
    _write_json(
        out / "recipe.json", recipe="synthesis", stages=["prepare", "tokenizer"], status="done",
        started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:10:00+00:00",
    )  # fmt: skip
    _write_json(
        out / "stages" / "prepare.json", name="prepare", status="done", fingerprint="x",
        basis={"settings": {}}, id="a" * 32, result=None, needs={}, seconds=3.5, peak_mib=100.0,
        started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:01:00+00:00", attempts=1,
        minutes=None, outputs=["prepared"], facts={"cases": 4},
    )  # fmt: skip
    (out / "config.yaml").write_text("")


def _write_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values, indent=1))
