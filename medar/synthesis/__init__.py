"""From a request to volumes: sampling, decoding, and files with their records."""

from medar.synthesis.region import Box as Box
from medar.synthesis.synthesizer import Synthesizer as Synthesizer
