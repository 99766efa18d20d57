"""Steps of a task that is compiled: graphs, and where they break."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch._dynamo.utils import counters

from medar.training.task import Task


def compiled_steps(task: Task[Any], times: Sequence[float]) -> tuple[int, list[str]]:
    """Compile a task and do its forward and backward pass at some fractions of the run.

    Returns:
        The number of graphs that were compiled, and the reasons of graph breaks.
    """
    torch._dynamo.reset()
    counters.clear()
    task.compile(backend="eager")
    batch = next(iter(task.batches(0, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own tracing
        for step, time in enumerate(times):
            task.progress = time
            task.loss(batch, step)[0].backward()  # type: ignore[no-untyped-call]
    breaks = list(counters["graph_break"])
    graphs = int(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    return graphs, breaks
