"""medar: generating and understanding 3D medical volumes with scale-wise autoregressive models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medar.errors import MedarError as MedarError
    from medar.volume import Grid as Grid
    from medar.volume import Volume as Volume
    from medar.volume import read_volume as read_volume
    from medar.volume import write_nifti as write_nifti

__version__ = "0.1.0"

_LAZY = {
    "Grid": "medar.volume",
    "MedarError": "medar.errors",
    "Volume": "medar.volume",
    "read_volume": "medar.volume",
    "write_nifti": "medar.volume",
}
__all__ = ["Grid", "MedarError", "Volume", "__version__", "read_volume", "write_nifti"]


def __getattr__(name: str) -> Any:
    # Names resolve on first use: `medar --help` must not wait for NumPy and SimpleITK.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medar' has no attribute {name!r}")
