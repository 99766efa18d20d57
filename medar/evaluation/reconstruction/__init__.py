"""How well a tokenizer reconstructs held-out cases."""

from medar.evaluation.reconstruction.evaluate import ReconstructionReport as ReconstructionReport
from medar.evaluation.reconstruction.evaluate import evaluate_tokenizer as evaluate_tokenizer
