"""Attributes that may identify people are left out of a manifest, unless they are asked for.

What is not in the manifest is in no prepared data set, token file, report or tracking server. An
attribute is left out by its name (names, ids, dates of people and scans, addresses, DICOM's
identifiers), if its values are dates, or if it is a different text for each of many cases.
"""

import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from medar.data.manifest import Case, Manifest
from medar.errors import MedarError

ALL = "all"
"""In place of a name: every attribute is kept."""

NAMES = {
    "a name": r"((patient|person|subject|participant|first|last|given|family|full|maiden)s?_?)?name"
    r"|surname",
    "an identifier": (
        r"((patient|person|subject|participant|medical|hospital|clinical|national|insurance|case"
        r"|study|series|accession|record)_?)*(id|ids|identifier|number|no|nr|uid)"
        r"|mrn|pid|ssn|nhs|accession|(.*_)?(instance|reference)_?uid"
    ),
    "a date": (
        r"(.*_)?dates?(_?time)?|(.*_)?date(time)?_?of_.*|dob|yob|birth.*|(.*_)birth(day)?"
        r"|(study|scan|series|acquisition|exam|visit|admission|death)date"
    ),
    "an address": (
        r"(home_?)?address|street|city|zip(_?code)?|post(al)?_?code|(tele)?phone|mobile|e_?mail"
    ),
    "a person": (
        r"((referring|performing|attending|reading)_?)?(physician|doctor|operator|radiologist)s?"
        r"(_?name)?"
    ),
}
"""Kinds by name, as regular expressions of the whole name: words in lower case, joined by "_"."""

WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word begins within a name such as PatientName."""

DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|(19|20)\d{6}"
)
MANY = 10
"""Number of cases from which on texts that all differ may identify each."""


def without_identifying(manifest: Manifest, keep: Collection[str] = ()) -> Manifest:
    """The manifest without attributes that may identify people.

    Args:
        manifest: the data set.
        keep: attributes to keep nevertheless; "all" keeps all.

    Raises:
        MedarError: an attribute to be kept does not exist.

    Warns:
        UserWarning: attributes are left out.
    """
    names = list(dict.fromkeys(name for case in manifest for name in case.attributes))
    if unknown := [name for name in keep if name != ALL and name not in names]:
        raise MedarError(
            f"{manifest.root}: no attribute {unknown[0]!r} to keep; available: "
            f"{', '.join(names) or 'none'}"
        )
    if ALL in keep:
        return manifest
    found = {name: kind for name in names if (kind := _kind(name, manifest.cases))}
    left_out = {name: kind for name, kind in found.items() if name not in keep}
    if not left_out:
        return manifest
    listed = ", ".join(f"{name} ({kind})" for name, kind in left_out.items())
    warnings.warn(
        f"{manifest.root}: attributes that may identify people are left out: {listed}; name those "
        "to keep with keep_attributes (--keep-attributes)",
        stacklevel=3,
    )
    cases = tuple(
        replace(case, attributes={k: v for k, v in case.attributes.items() if k not in left_out})
        for case in manifest
    )
    return manifest.with_cases(cases)


def _kind(name: str, cases: Sequence[Case]) -> str | None:
    """Why an attribute may identify people; None if nothing speaks for it."""
    plain = re.sub(r"[\W_]+", "_", WORDS.sub("_", name)).strip("_").lower()
    for kind, pattern in NAMES.items():
        if re.fullmatch(pattern, plain):
            return kind
    values: list[Any] = [case.attributes[name] for case in cases if name in case.attributes]
    if all(DATE.fullmatch(str(value)) for value in values):
        return "a date"
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) >= MANY and len(set(texts)) == len(values):
        return "a different text for each case"
    return None
