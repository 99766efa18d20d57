"""From a request to volumes: sampling, decoding, and files with their records."""

from typing import TYPE_CHECKING

from medar.lazy import lazy

if TYPE_CHECKING:
    from medar.synthesis.region import Box as Box
    from medar.synthesis.synthesizer import Synthesizer as Synthesizer

__getattr__ = lazy(
    "medar.synthesis",
    (
        "medar.synthesis.region:Box",
        "medar.synthesis.synthesizer:Synthesizer",
    ),
)
