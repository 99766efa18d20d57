"""Black and white as a user asks for them: presets for CT, or LEVEL/WIDTH."""

import math

from medar.errors import MedarError
from medar.volume.display import Range

PRESETS = {"soft": "40/400", "lung": "-600/1500", "bone": "300/1500", "brain": "40/80"}
"""Names of CT windows and what they stand for, LEVEL/WIDTH in HU."""

LARGEST = 3e38
"""Graphics cards count to this."""


def parse_window(text: str) -> Range:
    """Black and white of a preset's name or of LEVEL/WIDTH.

    Raises:
        MedarError: neither of the two, or a width that is not above 0.
    """
    level, _, width = PRESETS.get(text, text).partition("/")
    try:
        low, high = float(level) - float(width) / 2, float(level) + float(width) / 2
    except ValueError:
        low = high = math.nan
    if not -LARGEST < low < high < LARGEST:
        raise MedarError(
            f"--window {text}: {', '.join(PRESETS)}, or LEVEL/WIDTH such as 40/400 is needed"
        )
    return low, high
