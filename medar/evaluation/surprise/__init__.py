"""How surprising the volumes of a data set are to a generator: damaged and unusual ones first."""

from medar.evaluation.surprise.files import Scores as Scores
from medar.evaluation.surprise.files import score_data_set as score_data_set
