"""How good generated volumes are, as a set, and how well a generator follows its inputs."""

from medar.evaluation.generation.evaluate import GenerationReport as GenerationReport
from medar.evaluation.generation.evaluate import evaluate_generation as evaluate_generation
