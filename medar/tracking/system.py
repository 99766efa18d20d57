"""What the machine is doing, in MLflow's own words: processors, memory, disk, network, GPUs.

MLflow's monitors are asked at each delivery, not by a thread of their own: a training that is read
every few seconds anyway needs none. NVIDIA's library (nvidia-ml-py) tells most of a GPU; without it
torch tells its memory. What is not there is left out.
"""

import contextlib
import importlib
import sys
from typing import Any

MONITORS = {
    "cpu_monitor": "CPUMonitor",
    "disk_monitor": "DiskMonitor",
    "network_monitor": "NetworkMonitor",
    "gpu_monitor": "GPUMonitor",
}
"""Of `mlflow.system_metrics.metrics`; the first three need psutil, the last nvidia-ml-py."""


class System:
    """The machine's state between two looks."""

    def __init__(self) -> None:
        self._monitors: list[Any] | None = None

    def read(self) -> dict[str, float]:
        """Values by MLflow's names; none at the first look, which only starts the counters."""
        first = self._monitors is None
        if self._monitors is None:
            found = (_monitor(module, name) for module, name in MONITORS.items())
            self._monitors = [monitor for monitor in found if monitor is not None]
        values: dict[str, float] = {}
        for monitor in self._monitors:
            with contextlib.suppress(Exception):  # a driver's whim is no reason to lose metrics
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
        if not any(name.startswith("gpu_") for name in values):
            values |= _gpu_memory()
        return {} if first else {f"system/{name}": float(value) for name, value in values.items()}


def _monitor(module: str, name: str) -> Any:
    """One of MLflow's monitors; None where what it needs is not there."""
    try:
        return getattr(importlib.import_module(f"mlflow.system_metrics.metrics.{module}"), name)()
    except Exception:  # whatever a driver or a container raises, the run goes on without
        return None


def _gpu_memory() -> dict[str, float]:
    """Memory in use on each GPU, by any process, as torch tells it; none where torch uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    values = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        values[f"gpu_{index}_memory_usage_megabytes"] = round((total - free) / 1e6, 1)
        values[f"gpu_{index}_memory_usage_percentage"] = round(100 * (1 - free / total), 1)
    return values
