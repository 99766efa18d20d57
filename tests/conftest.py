"""Fixtures shared by all tests."""

import gc
import locale
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forking import run_connected

if TYPE_CHECKING:
    import torch

os.environ["OMP_NUM_THREADS"] = "1"  # read as torch loads; everything here is too small for two

gc.disable()  # while modules are imported, of which nothing is garbage


def pytest_collection_finish() -> None:
    """Leave modules and tests out of garbage collections, a third of the time of quick tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """ITK's writer of DICOM files leaves the locale "C", in which text files are read as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes next to the checkout; tests that need it skip if it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDAR_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set MEDAR_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database to copy, because creating its tables takes seconds."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        warnings.simplefilter("ignore")  # MLflow's own, as it is imported
        import mlflow.pyfunc

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def in_two_processes() -> Callable[..., list[str]]:
    """Run a script as two connected processes, as torchrun would; what each of them printed."""

    def run(script: Path, *words: object, returncode: int = 0) -> list[str]:
        ended = run_connected(script, *words, timeout=300)
        printed = [one.printed for one in ended]
        assert [one.returncode for one in ended] == [returncode] * 2, printed
        return printed

    return run


BROWSERS = ("chromium", "chromium-browser", "google-chrome")

MANNERS = (
    "--use-angle=swiftshader",  # WebGL2 without a graphics card
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
"""Chromium asks for nothing by itself, and no name leads off this machine."""


@dataclass(frozen=True)
class Chromium:
    """A page in a headless browser, with its errors and requests."""

    page: Any
    """Playwright's `Page`."""
    errors: list[str] = field(default_factory=list)
    """What the console says of level error or warning, and exceptions that nobody caught."""
    requests: list[str] = field(default_factory=list)
    """Requested addresses, without data URLs inside the page."""

    @property
    def outside(self) -> list[str]:
        """The requests to other machines."""
        own = ("file://", "blob:", "http://127.0.0.1", "http://localhost")
        return [address for address in self.requests if not address.startswith(own)]

    def listen(self) -> None:
        """Record errors and requests from now on."""

        def hear(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.errors.append(message.text)

        def ask(request: Any) -> None:
            if not request.url.startswith("data:"):
                self.requests.append(request.url)

        self.page.on("console", hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", ask)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that need it are skipped if none is on the PATH."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser on the PATH ({', '.join(BROWSERS)})")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(MANNERS), chromium_sandbox=False
        )
        yield browser
        browser.close()


@pytest.fixture
def chromium(browser: Any) -> Iterator[Chromium]:
    """An empty page of the browser, without anything that earlier ones left."""
    with browser.new_context() as context:
        opened = Chromium(context.new_page())
        opened.listen()
        yield opened


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> "torch.device":
    """The CPU, and a CUDA device: a test that takes this runs on each; skipped without CUDA."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
