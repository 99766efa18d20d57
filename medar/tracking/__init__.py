"""Everything that MLflow sees: runs, their data sets and system metrics, models."""

from medar.tracking.tracker import MlflowTracker as MlflowTracker
