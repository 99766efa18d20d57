"""The models that come with medar, and where the name of a model leads.

A model in the box is a bundle, the folder medar/models/NAME of the package:

bundle.json     what it is (`Bundle`)
README.md       the model card
figures.json    what it reaches, measured on the weights as they are stored
generator/      the model folder of a generator, with that of its tokenizer in generator/tokenizer
segmenter/      the model folder of a segmentation network, in some bundles

Wherever a model folder is accepted, so are the name of a model in the box, the folder of a bundle,
and `hf:owner/name`. A local path of the same name comes first.
"""

import shutil
from pathlib import Path

from medar import hub
from medar.errors import MedarError
from medar.files import atomic_folder, read_json, read_json_object, write_json
from medar.settings import from_dict, settings, to_dict

BUNDLE, CARD, FIGURES = "bundle.json", "README.md", "figures.json"
FORMAT_VERSION = 1

GENERATOR, TOKENIZER, SEGMENTER = "generator", "tokenizer", "segmentation network"
PARTS = {GENERATOR: "generator", TOKENIZER: "generator/tokenizer", SEGMENTER: "segmenter"}
"""Where a bundle holds its model folders, by kind."""

MAX_BYTES, MAX_BYTES_TOGETHER = 12_000_000, 40_000_000
"""Of one bundle, and of all in the box."""


@settings
class Bundle:
    """The content of bundle.json: what a bundle is, in words for people."""

    title: str
    """Such as "Hippocampus MR"."""
    makes: str
    """The volumes that it makes, in one line: modality, body part, voxels, spacing, labels."""
    licence: str
    """Of the weights, as the licence of the training data demands."""
    medar: str
    """The version that packed it."""

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a folder's bundle.json.

        Raises:
            MedarError: the file is absent, damaged or of another format.
        """
        path = folder / BUNDLE
        values = read_json_object(path)
        version = values.pop("format", None)
        if version != FORMAT_VERSION:
            raise MedarError(
                f"{path}: format must be {FORMAT_VERSION}, got {version}; use the version of medar "
                f"that packed it ({values.get('medar', 'unknown')})"
            )
        return from_dict(cls, values, str(path))

    def save(self, folder: Path) -> None:
        """Write a folder's bundle.json."""
        write_json(folder / BUNDLE, {"format": FORMAT_VERSION, **to_dict(self)})


def box_folder() -> Path:
    """The folder of the models that come with medar."""
    return Path(__file__).resolve().parent / "models"


def box_names() -> list[str]:
    """The names of the models that come with medar."""
    return sorted(path.parent.name for path in box_folder().glob(f"*/{BUNDLE}"))


def box_model(name: str) -> Path:
    """The bundle of a model in the box.

    Raises:
        MedarError: there is none of this name.
    """
    if name not in box_names():
        raise MedarError(f"{name}: not a model that comes with medar ({known_names()})")
    return box_folder() / name


def known_names() -> str:
    """The names in the box, for messages."""
    names = box_names()
    return f"known: {', '.join(names)}" if names else "this installation has none"


def locate(path: str | Path) -> Path:
    """The folder that a path, the name of a model in the box or `hf:owner/name` stands for.

    A path that exists stands for itself, whatever its name; one that does not, and is no name
    either, is returned unchanged.

    Raises:
        MedarError: a repository that cannot be read.
    """
    text = Path(path).as_posix()
    if text.startswith(hub.PREFIX):
        return hub.download(text)
    path = Path(path)
    return box_folder() / text if not path.exists() and text in box_names() else path


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle."""
    return (folder / BUNDLE).is_file()


def part_of(bundle: Path, kind: str) -> Path:
    """The model folder of a kind in a bundle.

    Raises:
        MedarError: the bundle holds none.
    """
    held = [name for name, part in PARTS.items() if (bundle / part).is_dir()]
    if kind not in held:
        raise MedarError(f"{bundle}: holds no {kind}; it holds a {' and a '.join(held)}")
    return bundle / PARTS[kind]


def export_model(name: str, out: Path) -> None:
    """Copy a model in the box: a bundle, whose parts are ordinary model folders.

    Args:
        name: of the model.
        out: a folder that is absent or empty.

    Raises:
        MedarError: there is no such model, or `out` holds files.
    """
    source = box_model(name)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MedarError(f"{out}: must be a new or an empty folder")
    with atomic_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder and those below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def summary_of(bundle: Path) -> str:
    """The most important figures of a bundle, in one line."""
    return str(read_json(bundle / FIGURES)["summary"])
