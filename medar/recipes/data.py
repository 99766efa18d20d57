"""The data set of a recipe, and digests of what goes into stages and of what comes out.

Digests are of content: when, where and how something was made is left out, so that a stage that
runs again and leaves the same gives no reason to run those that need it.
"""

import contextlib
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest
from medar.data.prepared import HASHES_FILE, MANIFEST_FILE, Prepared
from medar.data.resolve import is_prepared
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.files import TEMPORARY, digest, file_digest
from medar.parallel import default_workers
from medar.progress import track
from medar.recipes.settings import DataSettings
from medar.records import PREPARED, Records
from medar.words import format_count

if TYPE_CHECKING:
    import numpy.typing as npt

    from medar.data.prepared import PreparedCase

PROVENANCE = ("image", "label", "trace")
"""Fields of a case on the origin of its arrays: their keys, and the source."""


def check_data(data: DataSettings, out: Path | None = None) -> Path:
    """The path of the data set.

    Args:
        data: names it.
        out: the recipe's folder.

    Raises:
        MedarError: there is none, it is already prepared, or `out` is inside it.
    """
    if data.path is None:
        raise MedarError("no data set: name one with --data")
    if not data.path.exists():
        raise MedarError(f"{data.path}: no such file or folder")
    if is_prepared(data.path):
        raise MedarError(
            f"{data.path}: is already prepared; name the data set that it was prepared from"
        )
    if out is not None and out.resolve().is_relative_to(data.path.resolve()):
        raise MedarError(
            f"{out}: is inside the data set {data.path}, where samples would become cases; choose "
            "an --out outside of it"
        )
    return data.path


def data_manifest(data: DataSettings, stored: Manifest | None = None) -> Manifest:
    """The manifest of the data set.

    Args:
        data: names it.
        stored: an earlier manifest, whose splits are kept.

    Raises:
        MedarError: see `check_data` and `read_manifest`.
    """
    return read_manifest(
        check_data(data),
        attributes=data.attributes,
        modality=data.modality,
        keep_attributes=data.keep_attributes,
        seed=data.seed,
        stored=stored,
    )


def manifest_in(data: DataSettings, out: Path) -> Manifest:
    """The manifest, with the splits that an earlier run in the same folder gave its subjects.

    Args:
        data: names the data set.
        out: the recipe's folder.

    Raises:
        MedarError: see `data_manifest`.
    """
    folders = [out / PREPARED, *reversed(Records(out).replaced("prepare"))]
    files = (folder / MANIFEST_FILE for folder in folders)
    earlier = next((Manifest.load(file) for file in files if file.exists()), None)
    return data_manifest(data, earlier)


def resolve_data(
    data: DataSettings,
    out: Path,
    plan: Mapping[str, Any],
    evaluated: str,
    *,
    labelled: bool = False,
) -> tuple[DataSettings, str]:
    """Check the data set before anything runs, and infer a modality that it does not state.

    Args:
        data: names the data set.
        out: the recipe's folder.
        plan: values of the plan in the settings.
        evaluated: see `check_cases`.
        labelled: see `check_cases`.

    Returns:
        The settings, and a message if the modality was inferred, else "".

    Raises:
        MedarError: see `check_data`, `with_modality` and `check_cases`.
    """
    check_data(data, out)
    data, message = with_modality(data, data_manifest(data), plan.get("intensity") or {})
    manifest = manifest_in(data, out)
    check_cases(manifest.root, manifest, evaluated, labelled=labelled)
    return data, message


def check_cases(
    root: Path, cases: Iterable["Case | PreparedCase"], evaluated: str, *, labelled: bool
) -> dict[str, int]:
    """Number of cases in each split, as `cases_train` and so on.

    Args:
        root: folder of the data, for messages.
        cases: of the data set, before or after preparation.
        evaluated: the split that models are evaluated on.
        labelled: training and evaluation need a labelled case in each split.

    Raises:
        MedarError: too few cases to train or to evaluate: better known before the training.
    """
    cases = list(cases)
    count: Counter[str | None] = Counter(case.split for case in cases)
    annotated: Counter[str | None] = Counter(case.split for case in cases if _is_labelled(case))
    for split, least in (("train", 2), ("val", 1), ("test", int(evaluated == "test"))):
        if count[split] < least:
            raise MedarError(
                f"{root}: {count[split]} of {format_count(len(cases), 'case')} in the split "
                f"{split!r}, at least {least} needed to train and evaluate a model; add volumes, "
                "or name their splits"
            )
        if labelled and least and not annotated[split]:
            raise MedarError(
                f"{root}: none of the {format_count(count[split], 'case')} in the split {split!r} "
                "is labelled, at least 1 needed; add label maps, or name the splits of the cases"
            )
    return {f"cases_{name}": count[name] for name in ("train", "val", "test")}


def with_modality(
    data: DataSettings, manifest: Manifest, intensity: Mapping[str, Any]
) -> tuple[DataSettings, str]:
    """The data settings with the modality of volumes that do not state theirs.

    Args:
        data: names the data set.
        manifest: of the data set.
        intensity: the intensity rules in the settings of the plan, by modality; empty if the plan
            is derived from the data.

    Returns:
        The settings, and a message if the modality was inferred from the only rule, else "".

    Raises:
        MedarError: no rule applies to any of the volumes.
    """
    if not intensity or not intensity.keys() <= {"CT", "MR"}:
        return data, ""  # rules for channels, or for whatever is not named
    stated = {_modality(case) for case in manifest}
    if None in stated and len(intensity) == 1:
        rule: Any = next(iter(intensity))
        message = (
            f"{manifest.root}: volumes do not state their modality; taken as {rule}, the only one "
            "in the plan (--modality states it)"
        )
        return replace(data, modality=rule), message
    if not stated & intensity.keys():
        named = ", ".join(sorted(name or "no modality" for name in stated))
        raise MedarError(
            f"{manifest.root}: volumes state {named}, and the plan has intensity rules for "
            f"{', '.join(intensity)} only; state the modality with --modality, or choose another "
            "configuration"
        )
    return data, ""


def _modality(case: Case) -> str | None:
    """The modality of a case, from the data set or the header of its file."""
    from medar.volume import read_header

    if case.modality is None:
        with contextlib.suppress(MedarError):  # preparation sets such cases aside
            return read_header(case.images[0]).modality
    return case.modality


def _is_labelled(case: "Case | PreparedCase") -> bool:
    if isinstance(case, Case):
        return case.label is not None and case.annotated != ()
    return bool(case.annotated)


def data_digests(data: DataSettings, out: Path) -> dict[str, str]:
    """Digests of the list of cases and of the content of their files, by description.

    Files are read once; afterwards OUT/hashes.json remembers those that have not been touched.

    Raises:
        MedarError: see `data_manifest`.
    """
    manifest = data_manifest(data)
    files = [file for case in manifest for file in case.files]
    hashes = _hashes(files, out, data.workers)
    return {"the list of cases": manifest.digest, "the content of files": digest(hashes)}


def folder_digest(name: str, folder: Path | None, out: Path) -> dict[str, str]:
    """The digest of all files of a folder but unfinished ones, by description; empty without one.

    Raises:
        MedarError: no such folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise MedarError(f"{name} {folder}: no such folder")
    finished = (path for path in folder.rglob("*") if not path.name.startswith(TEMPORARY))
    files = sorted(path for path in finished if path.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    return {f"the content of {name}": digest([names, _hashes(files, out)])}


def file_digests(files: Mapping[str, Path | None]) -> dict[str, str]:
    """Digests of single files by description, without those that are None.

    Raises:
        MedarError: a file cannot be read.
    """
    digests = {}
    for name, path in files.items():
        if path is not None:
            try:
                digests[f"the content of {name}"] = file_digest(path)
            except OSError as error:
                raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
    return digests


def copy_hashes(out: Path, folder: Path) -> None:
    """Copy the hashes of the data set's files to a folder that is about to be prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / HASHES_FILE).exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(out / HASHES_FILE, folder / HASHES_FILE)


def _hashes(files: Sequence[Path], out: Path, workers: int | None = None) -> list[str]:
    """Content hashes of files, in their order; OUT/hashes.json remembers them."""
    index = HashIndex(out / HASHES_FILE)
    index.prime(files, workers=workers or default_workers())
    hashes = []
    for file in files:
        try:
            hashes.append(index[file])
        except MedarError:
            hashes.append("cannot be read")  # preparation skips the case and reports the reason
    if out.is_dir():
        with contextlib.suppress(MedarError):  # a dry run must work in a read-only folder
            index.save()
    return hashes


def prepared_result(folder: Path) -> str:
    """The digest of a prepared data set: its plan, its cases, the values of their arrays."""
    data = Prepared(folder)
    cases = []
    for index in track(range(len(data)), total=len(data), label="read back"):
        case = data[index]
        label = data.label(case)
        values = [_array_digest(data.image(case)), None if label is None else _array_digest(label)]
        cases.append([_description(case), values])
    return digest([data.plan.digest, cases])


def tokens_result(folder: Path) -> str:
    """The digest of a data set in tokens: its tokenizer, its cases, their tokens and maps."""
    from medar.data.cache import ArrayCache
    from medar.tokenizer.tokens import MAPS, TokenIndex

    index, maps = TokenIndex.load(folder), ArrayCache(folder / MAPS)
    cases = [
        [
            _description(case),
            file_digest(folder / case.file),
            _array_digest(maps.read(case.id)) if index.has_maps else None,
        ]
        for case in index.cases
    ]
    labels = sorted((index.maps or {}).items())
    return digest([index.tokenizer, index.plan, index.variants, labels, cases])


def files_result(folder: Path, pattern: str) -> str:
    """The digest of the files that match a pattern: their names and bytes."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return digest([[file.relative_to(folder).as_posix(), file_digest(file)] for file in files])


def _description(case: "PreparedCase") -> dict[str, Any]:
    return {name: value for name, value in asdict(case).items() if name not in PROVENANCE}


def _array_digest(array: "npt.NDArray[Any]") -> str:
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=16).hexdigest()
