"""A data set as a recipe reads it: its manifest with splits that stay, and digests of its files."""

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medar.data.hashes import HashIndex
from medar.data.layout import HASHES_FILE, MANIFEST_FILE
from medar.data.manifest import Manifest
from medar.data.prepared import Prepared
from medar.data.resolve import is_prepared
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.files import digest, file_digest
from medar.parallel import default_workers
from medar.recipes.settings import DataSettings
from medar.records import Records

HASHES = HASHES_FILE
"""Content hashes of the data set's files, below OUT."""


def check_data(data: DataSettings, out: Path | None = None) -> Path:
    """Where the data set is.

    Args:
        data: names it.
        out: the recipe's folder.

    Raises:
        MedarError: none is named, none is there, it is prepared, or `out` lies in it.
    """
    if data.path is None:
        raise MedarError("no data set is named: give its path with --data")
    if not data.path.exists():
        raise MedarError(f"{data.path}: no such file or folder")
    if is_prepared(data.path):
        raise MedarError(
            f"{data.path}: is prepared already; name the data set that it was prepared from"
        )
    if out is not None and out.resolve().is_relative_to(data.path.resolve()):
        raise MedarError(
            f"{out}: lies in the data set {data.path}, of which samples would become cases; --out "
            "names a folder outside"
        )
    return data.path


def manifest_of(data: DataSettings, stored: Manifest | None = None) -> Manifest:
    """The data set that the settings name.

    Args:
        data: names it.
        stored: an earlier manifest, whose splits stay.

    Raises:
        MedarError: see `check_data`, and what `read_manifest` raises.
    """
    return read_manifest(
        check_data(data),
        attributes=data.attributes,
        modality=data.modality,
        seed=data.seed,
        stored=stored,
    )


def manifest_in(data: DataSettings, out: Path, stage: str, folder: Path) -> Manifest:
    """The data set, with the splits that an earlier run in the same place gave its subjects.

    Args:
        data: names it.
        out: the recipe's folder.
        stage: the one that prepares.
        folder: where it prepares.

    Raises:
        MedarError: see `manifest_of`.
    """
    places = [folder, *reversed(Records(out).replaced(stage))]
    files = (place / MANIFEST_FILE for place in places)
    earlier = next((Manifest.load(file) for file in files if file.exists()), None)
    return manifest_of(data, earlier)


def data_digests(data: DataSettings, out: Path) -> dict[str, str]:
    """What the data set says and what its files hold, by words for it.

    Files are read once; afterwards OUT/hashes.json vouches for those that nobody has touched.

    Raises:
        MedarError: see `manifest_of`.
    """
    manifest = manifest_of(data)
    files = [file for case in manifest for file in case.files]
    hashes = _hashes(files, out, data.workers)
    return {"the list of cases": manifest.digest, "the content of files": digest(hashes)}


def folder_digest(words: str, folder: Path | None, out: Path) -> dict[str, str]:
    """The digest of all files of a folder, by words for it; nothing if none is named.

    Raises:
        MedarError: no such folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise MedarError(f"{folder}: no such folder, which {words} names")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    return {f"the content of {words}": digest([names, _hashes(files, out)])}


def _hashes(files: Sequence[Path], out: Path, workers: int | None = None) -> list[str]:
    """Content hashes of files, in their order; OUT/hashes.json remembers them."""
    index = HashIndex(out / HASHES)
    index.prime(files, workers=workers or default_workers())
    found = []
    for file in files:
        try:
            found.append(index[file])
        except MedarError:
            found.append("cannot be read")  # preparing sets the case aside, and says why
    if out.is_dir():
        with contextlib.suppress(MedarError):  # a folder that may only be read; a plan needs more
            index.save()
    return found


def content_of(files: Mapping[str, Path | None]) -> dict[str, str]:
    """Digests of what single files hold, by words for them; those that are not named are left out.

    Raises:
        MedarError: a file cannot be read.
    """
    found = {}
    for words, path in files.items():
        if path is not None:
            try:
                found[f"the content of {words}"] = file_digest(path)
            except OSError as error:
                raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
    return found


def lend_hashes(out: Path, folder: Path) -> None:
    """Give what is known of the files' content to a folder that is prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / HASHES_FILE).exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(out / HASHES, folder / HASHES_FILE)


def cases_by_split(data: Prepared, judged: str, *, labelled: bool = False) -> dict[str, int]:
    """How many prepared cases each split has, as `cases_train` and so on.

    Args:
        data: after preparing.
        judged: the split that models are to be judged by.
        labelled: training and judging need an annotated case of each split.

    Raises:
        MedarError: too few to train, or to judge: better now than after the training.
    """
    cases = [data[place] for place in range(len(data))]
    found: Counter[str | None] = Counter(case.split for case in cases)
    annotated: Counter[str | None] = Counter(case.split for case in cases if case.annotated)
    for split, least in (("train", 2), ("val", 1), ("test", int(judged == "test"))):
        if found[split] < least:
            raise MedarError(
                f"{data.folder}: {found[split]} of {len(data)} cases in the split {split!r}, at "
                f"least {least} for a model that can be judged; add volumes, or name their splits"
            )
        if labelled and least and not annotated[split]:
            raise MedarError(
                f"{data.folder}: none of the {found[split]} cases in the split {split!r} is "
                "labelled, at least 1 is needed; add label maps, or name the splits of the cases"
            )
    return {f"cases_{name}": found[name] for name in ("train", "val", "test")}
