"""A training step on fake CUDA tensors: where would the host wait for the device?

Fake tensors have shapes, types and devices, but no values, so that no card is needed. The step is
that of the loop; only the backward pass is left out, which needs a driver and runs no Python of
medar's.
"""

import contextlib
import ctypes
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._subclasses.fake_tensor as fake
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import medar
from medar.training.distributed import current_ranks
from medar.training.folder import RunConfig, RunFolder
from medar.training.loop import Loop
from medar.training.precision import Precision
from medar.training.run import Run
from medar.training.settings import TrainingSettings
from medar.training.task import Task
from medar.training.tracker import Trackers

ROOT = str(Path(medar.__file__).parent)
CUDA = torch.device("cuda", 0)
META = 14
"""torch's number of the device type of tensors without data; CUDA's is 1."""
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def source_line() -> str:
    """The innermost line of medar on the stack."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT)]
    return f"{frames[-1].filename[len(ROOT) + 1 :]}:{frames[-1].lineno}" if frames else "outside"


class Waits(TorchDispatchMode):
    """Records reads of device values, and copies between devices for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = torch.device(kwargs.get("device") or "cpu")
        if device.type == "cpu" and not any(map(is_fake, tensors)):
            with fake.unset_fake_temporarily():  # the host computes as ever
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.found.append(f"{source_line()} reads a value")
            return True if args[0].dtype == torch.bool else 1
        if func in COPIES:
            into = func is COPIES[1]
            source = args[1] if into else args[0]
            target = args[0].device if into else kwargs.get("device") or source.device
            waiting = not (args[2] if into and len(args) > 2 else kwargs.get("non_blocking"))
            if torch.device(target).type != source.device.type:
                onto = torch.device(target).type == "cuda"
                if waiting or not onto or not getattr(source, "pinned", False):
                    self.found.append(f"{source_line()} copies to {target}")
                if not into:  # constants are folded, for which there is no kernel
                    dtype = kwargs.get("dtype") or source.dtype
                    return torch.empty(source.shape, dtype=dtype, device=target)
        return func(*args, **kwargs)


def is_fake(tensor: Any) -> bool:
    return isinstance(tensor, fake.FakeTensor)


@contextlib.contextmanager
def fake_cuda(patch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Fake CUDA tensors inside the block; what asks a card or needs its kernels is replaced."""
    waits, mode = Waits(), fake.FakeTensorMode(allow_non_fake_inputs=True)
    tensor, as_tensor, norm = torch.tensor, torch.as_tensor, functional.rms_norm
    attention = functional.scaled_dot_product_attention

    def moved(made: Tensor, device: Any) -> Tensor:
        return made if device is None else made.to(device)

    def fake_norm(x: Tensor, shape: Any, weight: Any = None, eps: Any = None) -> Tensor:
        return norm(x, shape, weight, eps) if x.device.type != "cuda" else torch.empty_like(x)

    def fake_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if q.device.type != "cuda":
            return attention(q, k, v, *args, **kwargs)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    def pinned(self: Tensor, *_: Any) -> Tensor:
        made = self.clone()
        made.pinned = True  # type: ignore[attr-defined]
        return made

    replaced: list[tuple[Any, str, Any]] = [
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (torch.cuda, "mem_get_info", lambda *_: (1 << 36, 1 << 37)),
        (torch.cuda, "memory_reserved", lambda *_: 0),
        (torch.cuda, "memory_allocated", lambda *_: 0),
        (torch.cuda, "is_bf16_supported", lambda *a, **k: True),
        (torch.cuda.graphs, "is_current_stream_capturing", lambda: False),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (fake, "init_gpu_context", lambda *a, **k: None),
        (functional, "rms_norm", fake_norm),
        (functional, "scaled_dot_product_attention", fake_attention),
        (torch.Tensor, "pin_memory", pinned),
        (torch, "tensor", lambda v, device=None, **k: moved(tensor(v, **k), device)),
        (torch, "as_tensor", lambda v, device=None, **k: moved(as_tensor(v, **k), device)),
    ]
    for module in [m for n, m in list(sys.modules.items()) if n.startswith("medar.")]:
        for name, value in list(vars(module).items()):
            if value is attention:
                replaced.append((module, name, fake_attention))
    with patch.context() as within:
        for where, name, value in replaced:
            within.setattr(where, name, value, raising=False)
        with cuda_guard(), mode, waits:
            yield waits


@contextlib.contextmanager
def cuda_guard() -> Iterator[None]:
    """A build without CUDA has no guard for its devices; the one of meta tensors does nothing."""
    torch._C._ensureCUDADeviceGuardSet()
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        name = "_ZN3c104impl26device_guard_impl_registryE"
        guards = (ctypes.c_void_p * (META + 1)).in_dll(library, name)
    except (OSError, ValueError):
        pytest.skip("this build of torch keeps its device guards elsewhere")
    before = guards[1]
    guards[1] = before or guards[META]
    try:
        yield
    finally:
        guards[1] = before


def onto_cuda(networks: Sequence[nn.Module]) -> None:
    """Replace all parameters and buffers by fake ones on the device, strides kept."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in (module for network in networks for module in network.modules()):
        for kind in (module._parameters, module._buffers):
            for name, own in list(kind.items()):
                if own is None or is_fake(own):
                    continue
                if id(own) not in made:
                    new = torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device=CUDA)
                    if isinstance(own, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=own.requires_grad)
                    made[id(own)] = new, own
                kind[name] = made[id(own)][0]


def waits_of_a_step(
    task: Task[Any],
    settings: TrainingSettings,
    patch: pytest.MonkeyPatch,
    folder: Path,
    frozen: Sequence[nn.Module] = (),
    *,
    progress: float = 0.5,
    start: bool = True,
) -> list[str]:
    """What makes the host wait in the second of two steps on CUDA, under bf16 autocast.

    Args:
        task: what is trained.
        settings: of the run.
        patch: undoes all replacements.
        folder: of a run.
        frozen: networks that the task uses and does not train.
        progress: fraction of the run that is over.
        start: whether a step on the CPU comes first, which starts codebooks, and must give every
            parameter a gradient unless the task says otherwise.
    """
    task.progress = progress
    batch = next(iter(task.batches(0, 0)))
    if start:
        task.loss(batch, 0)[0].backward()  # type: ignore[no-untyped-call]
        trained = [p for p in task.model.parameters() if p.requires_grad]
        assert task.unused_parameters or all(p.grad is not None for p in trained)
    precision = Precision(device=CUDA, dtype=torch.bfloat16, compile=False, why="")
    config = RunConfig(task={}, training=settings, processes=1)
    networks = [task.model, *task.companions().values(), *frozen]
    with fake_cuda(patch) as waits:
        onto_cuda(networks)
        run = Run(task, config, RunFolder(folder, 1), current_ranks(), CUDA)
        run.state.step, run.state.elapsed = int(progress * (settings.steps or 0)), 1.0
        loop = Loop(run, precision, Trackers([]), lambda: 0.0)

        def backward(self: Tensor) -> None:
            for network in [task.model, *task.companions().values()]:
                rests = network is not task.model and progress < 0.5
                for parameter in network.parameters():
                    if parameter.requires_grad and not rests:
                        parameter.grad = torch.zeros_like(parameter)

        patch.setattr(torch.Tensor, "backward", backward)
        empty = tree_map_only(
            Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype, device=CUDA), batch
        )
        loop.batches = iter([empty] * 4)
        loop.step()
        waits.found.clear()
        loop.step()
        loop.once_in_a_while(save=False)
    return waits.found
