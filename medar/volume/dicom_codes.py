"""Codes of label names for DICOM: SNOMED CT where a name is known, otherwise a scheme of our own.

A wrong code is worse than none: names are matched as wholes, and those with several meanings
("ventricle", "head") are not in the table.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

PRIVATE = "99MEDAR"
"""Designator of our own scheme; DICOM gives those that start with 99 to everybody."""

MOST_CODE, MOST_TEXT = 16, 64
"""Longest code value and longest text that DICOM takes."""

ANATOMY, ABNORMAL, TISSUE, FLUID = (
    "AnatomicalStructure", "MorphologicallyAbnormalStructure", "Tissue", "BodySubstance",
)  # fmt: skip
"""Categories of segments (CID 7150)."""

KNOWN = {
    ANATOMY: (
        "Liver Spleen Pancreas Kidney Gallbladder Esophagus Stomach Duodenum SmallIntestine Colon "
        "Rectum Bladder Prostate SeminalVesicle Uterus Ovary Testis AdrenalGland Aorta "
        "InferiorVenaCava SuperiorVenaCava PortalVein HepaticVein PulmonaryArtery PulmonaryVein "
        "CommonIliacArtery CommonCarotidArtery SubclavianArtery BloodVessel Heart LeftAtrium "
        "RightAtrium LeftVentricle RightVentricle Lung UpperLobeOfLung LowerLobeOfLung Trachea "
        "Thyroid Brain BrainStem Cerebellum SpinalCord Hippocampus Amygdala Thalamus Putamen "
        "CaudateNucleus LateralVentricle WhiteMatter GrayMatter OpticChiasm OpticNerve Eye "
        "ParotidGland SubmandibularGland Larynx Pharynx Tongue Mandible Skull Vertebra Rib "
        "Sternum Sacrum Clavicle Scapula Humerus Femur FemoralHead Tibia Patella Pelvis Bone "
        "Breast LymphNode"
    ),
    ABNORMAL: "Neoplasm Lesion Mass Nodule Cyst Edema Necrosis Hemorrhage Thrombus",
    TISSUE: "Skin Muscle Fat Cartilage",
    FLUID: "CerebrospinalFluid",
}  # fmt: skip
"""Names in pydicom's dictionary of SNOMED CT, by category."""

OTHER_NAMES = {
    "oesophagus": "Esophagus", "smallbowel": "SmallIntestine", "urinarybladder": "Bladder",
    "adrenal": "AdrenalGland", "postcava": "InferiorVenaCava", "ivc": "InferiorVenaCava",
    "svc": "SuperiorVenaCava", "thyroidgland": "Thyroid", "heartatriumleft": "LeftAtrium",
    "heartatriumright": "RightAtrium", "heartventricleleft": "LeftVentricle",
    "heartventricleright": "RightVentricle", "lungupperlobe": "UpperLobeOfLung",
    "lunglowerlobe": "LowerLobeOfLung", "caudate": "CaudateNucleus", "chiasm": "OpticChiasm",
    "greymatter": "GrayMatter", "csf": "CerebrospinalFluid", "eyeball": "Eye",
    "parotid": "ParotidGland", "submandibular": "SubmandibularGland", "clavicula": "Clavicle",
    "tumor": "Neoplasm", "tumour": "Neoplasm", "cancer": "Neoplasm", "oedema": "Edema",
    "haemorrhage": "Hemorrhage", "vessel": "BloodVessel", "vertebrae": "Vertebra",
}  # fmt: skip
"""Other names of the same."""

SIDES = {"left": "Left", "l": "Left", "right": "Right", "r": "Right"}


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A label name in codes, as pydicom's `Code` has them: value, scheme, meaning."""

    category: Any
    kind: Any
    side: Any | None
    """Left or right, where the code itself does not say it."""


def code_name(name: str) -> Coded:
    """The codes of a label name, such as "kidney_left", "Left Kidney" or "KidneyLeft".

    Raises:
        ImportError: pydicom is not installed.
    """
    from pydicom.sr.coding import Code

    found = _known(name)
    if found is None:
        text = label_text(name)
        value = text if len(text) <= MOST_CODE else hashlib.sha256(text.encode()).hexdigest()
        return Coded(
            category=Code("label", PRIVATE, "Label of a segmentation network"),
            kind=Code(value[:MOST_CODE], PRIVATE, text),
            side=None,
        )
    category, keyword, side = found
    return Coded(category=_snomed(category), kind=_snomed(keyword), side=side and _snomed(side))


def label_text(name: str) -> str:
    """A label name as DICOM takes it: no backslash, no control characters, not too long."""
    text = "".join(c if c.isprintable() and c != "\\" else "_" for c in name).strip()
    return text[:MOST_TEXT] or "_"


def _known(name: str) -> tuple[str, str, str | None] | None:
    """Category, keyword and side of a name in the table; None for any other."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+", name)
    lower = [word.lower() for word in words]
    whole = "".join(lower)
    sides = [SIDES[word] for word in lower if word in SIDES]
    rest = "".join(word for word in lower if word not in SIDES)
    if keyword := _keyword(whole):
        return (*keyword, None)
    if len(sides) == 1 and (keyword := _keyword(rest)):
        return (*keyword, sides[0])
    return None


def _keyword(text: str) -> tuple[str, str] | None:
    """Category and keyword of a name without spaces, in lower case, also a plural."""
    standard = next(
        (OTHER_NAMES[t] for t in (text, text.removesuffix("s")) if t in OTHER_NAMES), ""
    )
    for category, keywords in KNOWN.items():
        for keyword in keywords.split():
            if keyword == standard or keyword.lower() in (text, text.removesuffix("s")):
                return category, keyword
    return None


def _snomed(keyword: str) -> Any:
    from pydicom.sr.codedict import codes

    return getattr(codes.SCT, keyword)
