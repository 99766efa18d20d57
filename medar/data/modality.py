"""Which modality the name of a sequence, channel or BIDS suffix stands for."""

import re

MR_NAMES = re.compile(
    r"(MRI?|T1|T2|T1[-_ ]?(w|c|ce|gd|weighted|rho|map)|T2[-_ ]?(w|star|starw|weighted|map)"
    r"|(T[12][-_ ]?)?FLAIR|FLASH|PDw?|PDT2|UNIT1|inplaneT[12]|angio|MTw|ADC|DWI|SWI|DCE|TOF|MRA)",
    re.IGNORECASE,
)
CT_NAMES = re.compile(r"(CT|CBCT|CTA|CECT|HU)", re.IGNORECASE)


def modality_of(name: str | None) -> str | None:
    """ "CT" or "MR" for the name of a modality or sequence; None where it is neither."""
    text = (name or "").strip()
    if CT_NAMES.fullmatch(text):
        return "CT"
    return "MR" if MR_NAMES.fullmatch(text) else None


def common_modality(names: tuple[str, ...]) -> str | None:
    """The modality that all channels share."""
    found = {modality_of(name) for name in names}
    return found.pop() if len(found) == 1 else None
