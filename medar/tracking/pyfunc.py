"""The code that MLflow stores with a model and runs to load it ("models from code").

It is copied into the model, and therefore only calls `medar.tracking.serving` of the medar that is
installed where the model is loaded.
"""

from typing import Any

import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from medar.errors import MedarError
from medar.tracking.serving import Endpoint, load_endpoint


class Medar(PythonModel):  # type: ignore[misc]
    """A tokenizer, a generator or a segmentation network."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder from the artifacts."""
        self.endpoint: Endpoint = load_endpoint(context.artifacts["model"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pandas.DataFrame:
        """Rows of the response to requests, one request per row; a wrong one raises one line."""
        requests = model_input.to_dict(orient="records")
        try:
            rows = [row for request in requests for row in self.endpoint(request)]
        except MedarError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pandas.DataFrame(rows, dtype=object)


set_model(Medar())
