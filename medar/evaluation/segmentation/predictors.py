"""Sources of label maps: a segmentation network, or finished files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.data.loading import UNKNOWN
from medar.data.plan import Plan
from medar.data.preparation import prepare_image, prepare_label, restore_label
from medar.devices import device_of
from medar.evaluation.segmentation.cases import EvaluationCase, EvaluationCases, find_files
from medar.evaluation.segmentation.metrics import CalibrationMeter
from medar.files import digest, file_digest
from medar.segmentation.prediction import image_tensor
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import DEFAULT, PredictionSettings, predict_rows
from medar.settings import to_dict
from medar.shared import Shared
from medar.volume import Volume


class Predictor(ABC):
    """Returns a label map for each case.

    Args:
        name: for reports.
    """

    plan: Plan | None = None
    """What a model was trained with; None for files."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, cases: EvaluationCases) -> None:
        """Prepare for the cases of an evaluation.

        Raises:
            MedarError: not all of them can be predicted.
        """
        return

    @abstractmethod
    def predict(self, case: EvaluationCase) -> Volume:
        """The label map of a case, on the grid of its image."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """The source of the label maps, for the protocol: `digest`, and other settings."""

    def take_meter(self) -> CalibrationMeter | None:
        """What was added to the calibration since the last call; None without probabilities."""
        return None


class NetworkPredictor(Predictor):
    """A segmentation network, as `medar segment` uses it.

    Args:
        model: in evaluation mode; computes on its own device.
        name: for reports.
        settings: of the prediction.
    """

    def __init__(
        self, model: Segmenter, name: str = "model", settings: PredictionSettings = DEFAULT
    ) -> None:
        super().__init__(name)
        self.model, self.settings = model, settings
        self.plan = model.plan
        self._truth_plan = model.plan
        self._meter = CalibrationMeter()

    def start(self, cases: EvaluationCases) -> None:
        """Reset the calibration."""
        self._truth_plan = replace(self.model.plan, ignore_label=cases.labels.ignore)
        self._meter = CalibrationMeter()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": Shared(self.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "model": state["model"].model})

    def predict(self, case: EvaluationCase) -> Volume:
        """Segment a case, and add its probabilities to the calibration."""
        plan, image = self.model.plan, case.image
        image = replace(image, modality=image.modality or plan.sole_modality)
        array, trace = prepare_image(image, plan)
        truth = None
        if set(case.annotated) == set(plan.labels):
            label = prepare_label(case.truth, trace.target, self._truth_plan)
            truth = _classes(label, self._truth_plan)
        classes = np.zeros((1, *array.shape[1:]), np.int16)
        parts = predict_rows(self.model, image_tensor(array), self.settings)
        for window, blended in parts:
            classes[window] = blended.classes.cpu().numpy()
            if truth is not None:
                self._meter.update(blended.probabilities.cpu(), truth[window])
        values = np.array([0, *plan.labels], dtype=plan.label_dtype)
        return restore_label(values[classes], trace)

    def about(self) -> dict[str, Any]:
        """Digests of the network and its plan, and the settings of the prediction."""
        mirrors = self.settings.mirrors
        return {
            "digest": self.model.digest,
            "plan": self.model.plan.digest,
            "prediction": {
                **to_dict(self.settings),
                "mirrors": list(self.model.mirrors if mirrors is None else mirrors),
            },
            "device": device_of(self.model).type,
        }

    def take_meter(self) -> CalibrationMeter | None:
        """Of the probabilities on the prepared grid."""
        filled, self._meter = self._meter, CalibrationMeter()
        return filled


class FilesPredictor(Predictor):
    """Finished label maps from any source: one file CASE.nii.gz (or another format) per case.

    Args:
        folder: of the files.
        name: for reports; default the folder's path.
        network: that made the files; it predicts again for the calibration, which label maps
            cannot give.
    """

    def __init__(
        self, folder: str | Path, name: str | None = None, network: NetworkPredictor | None = None
    ) -> None:
        super().__init__(name or str(folder))
        self.folder, self.network = Path(folder), network
        self.plan = None if network is None else network.plan
        self._cases: EvaluationCases | None = None
        self._files: dict[str, Path] = {}

    def start(self, cases: EvaluationCases) -> None:
        """Find the file of each case."""
        self._cases, self._files = cases, find_files(self.folder, cases.cases)
        if self.network is not None:
            self.network.start(cases)

    def predict(self, case: EvaluationCase) -> Volume:
        """Read a case's file."""
        assert self._cases is not None, "start comes first"
        if self.network is not None:
            self.network.predict(case)
        return self._cases.read_label(case.case, case.image, self._files[case.case.id])

    def about(self) -> dict[str, Any]:
        """A digest of the files, and of the network that made them if there is one."""
        files = {case: file_digest(path) for case, path in self._files.items()}
        source = {} if self.network is None else {"network": self.network.about()}
        return {"digest": digest(files), **source}

    def take_meter(self) -> CalibrationMeter | None:
        """Of the network that made the files; None without it."""
        return None if self.network is None else self.network.take_meter()


def as_predictors(
    models: Segmenter | Predictor | Sequence[Segmenter | Predictor], settings: PredictionSettings
) -> list[Predictor]:
    """Networks as predictors, named "model", or "model 1", "model 2" ... if there are several."""
    several = list(models) if isinstance(models, Sequence) else [models]
    predictors: list[Predictor] = []
    for number, model in enumerate(several, 1):
        if isinstance(model, Predictor):
            predictors.append(model)
        else:
            name = "model" if len(several) == 1 else f"model {number}"
            predictors.append(NetworkPredictor(model, name, settings))
    return predictors


def _classes(label: npt.NDArray[Any], plan: Plan) -> Tensor:
    """Label values as classes: 0 for background, i + 1 for the i-th label, -1 for unknown."""
    classes = np.zeros(label.shape, np.int16)
    for index, value in enumerate(plan.labels, 1):
        classes[label == value] = index
    if plan.ignore_label is not None:
        classes[label == plan.ignore_label] = UNKNOWN
    return torch.from_numpy(classes)
