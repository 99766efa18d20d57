"""Data sets for MLflow: prepared cases and tokens, named by a hash of all that a model reads."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from medar.data.prepared import CASES_FILE, MANIFEST_FILE
from medar.errors import MedarError
from medar.files import digest
from medar.settings import to_dict


class DataSet(NamedTuple):
    """A data set that a run reads."""

    name: str
    digest: str
    """At most 36 characters."""
    source: str
    """Where it is."""
    context: str
    """Its purpose, such as "training"."""
    profile: dict[str, Any]
    """Numbers to show, such as the number of cases."""


def data_set(folder: str | Path, context: str = "training") -> DataSet:
    """A folder of prepared cases or of tokens as a data set.

    The digest of prepared cases covers the plan and all cases, whose arrays are named by the hash
    of the files' content; the digest of tokens covers tokenizer, variants and cases.

    Args:
        folder: written by `medar data prepare` or `medar tokenizer encode`.
        context: purpose, such as "training" or "evaluation".

    Raises:
        MedarError: it holds neither, or is damaged.
    """
    folder = Path(folder).resolve()
    name, hashed, profile = (
        _prepared(folder) if (folder / CASES_FILE).is_file() else _tokens(folder)
    )
    return DataSet(name, hashed, folder.as_posix(), context, profile)


def _prepared(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """The name is that of the folder with the volumes."""
    from medar.data.manifest import Manifest
    from medar.data.prepared import Prepared

    prepared = Prepared(folder)
    listed = folder / MANIFEST_FILE
    root = Manifest.load(listed).root.resolve() if listed.exists() else folder
    profile = _numbers(prepared[index].split for index in range(len(prepared)))
    return root.name, digest([prepared.plan.digest, prepared.digest]), profile


def _tokens(folder: Path) -> tuple[str, str, dict[str, Any]]:
    from medar.tokenizer.tokens import INDEX, TokenIndex

    if not (folder / INDEX).exists():
        raise MedarError(
            f"{folder}: neither prepared cases nor tokens; name a folder written by "
            "`medar data prepare` or `medar tokenizer encode`"
        )
    index = TokenIndex.load(folder)
    hashed = digest([index.encoding(), [to_dict(case) for case in index.cases]])
    profile = _numbers(case.split for case in index.cases)
    return (
        folder.name,
        hashed,
        {**profile, "variants": index.variants, "scales": str(index.schedule)},
    )


def _numbers(splits: Iterable[str | None]) -> dict[str, Any]:
    counted = Counter(split or "no split" for split in splits)
    return {"cases": counted.total(), **counted}
