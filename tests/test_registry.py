"""Registries: built-in, registered and installed implementations; unknown names are refused."""

import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medar import registry as registry_module
from medar.errors import MedarError
from medar.registry import Registry


class Own:
    pass


class Other:
    pass


def registry() -> Registry[type]:
    builtin = {"ordered": "collections:OrderedDict", "absent": "no_such_module:Thing"}
    return Registry("codebook", "medar.tests", builtin)


def test_builtin_implementations_are_imported_when_needed() -> None:
    from collections import OrderedDict

    made = registry()
    assert made["ordered"] is OrderedDict
    with pytest.raises(MedarError, match=r"codebook 'absent': no_such_module:Thing cannot be"):
        made["absent"]


def test_a_name_is_registered_only_once() -> None:
    made = registry()
    assert made.register("own")(Own) is Own
    made.register("own")(Own)  # a module that is imported again
    assert made["own"] is Own
    assert list(made) == ["absent", "ordered", "own"]
    with pytest.raises(MedarError, match=r"'own' is already registered, by .*:Own; choose another"):
        made.register("own")(Other)


@pytest.mark.parametrize(
    ("name", "message"),
    [("Ordered", "did you mean 'ordered'"), ("zzz", "known codebooks: absent, ordered")],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(MedarError, match=rf"unknown codebook '{name}'; {message}"):
        registry()[name]
    with pytest.raises(MedarError, match=r"^kind: unknown codebook"):
        registry().check(name, "kind")


def test_entry_points_of_installed_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("installed", "collections:Counter", "medar.tests")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [point])
    from collections import Counter

    assert registry()["installed"] is Counter


def test_an_external_class_is_found_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_codebooks.py").write_text("class Theirs:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = registry()
    made.load_external("theirs", "their_codebooks:Theirs")
    assert made.import_path("theirs") == "their_codebooks:Theirs"
    assert made["theirs"] is sys.modules["their_codebooks"].Theirs
    with pytest.raises(MedarError, match=r"'gone': their_codebooks:Gone cannot be imported"):
        made.load_external("gone", "their_codebooks:Gone")


ANNOUNCED = """
from medar.errors import MedarError
from tests.test_registry import MADE


@MADE.register("signs")
class Signs:
    pass
"""
MADE = Registry[type]("codebook", "medar.tests", {})


def announce(monkeypatch: pytest.MonkeyPatch, path: str) -> Registry[type]:
    """A registry, `MADE`, whose entry points name one class."""
    made = Registry[type]("codebook", "medar.tests", {})
    monkeypatch.setattr(sys.modules[__name__], "MADE", made)
    point = EntryPoint("signs", path, "medar.tests")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [point])
    return made


@pytest.mark.parametrize("path", ["announced_codebooks.signs:Signs", "announced_codebooks:Signs"])
@pytest.mark.parametrize("imported_first", [True, False])
def test_a_class_with_a_decorator_and_an_entry_point_is_registered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, imported_first: bool
) -> None:
    package = tmp_path / "announced_codebooks"
    package.mkdir()
    (package / "signs.py").write_text(ANNOUNCED.replace("tests.test_registry", __name__))
    (package / "__init__.py").write_text("from announced_codebooks.signs import Signs\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("announced_codebooks", "announced_codebooks.signs"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    made = announce(monkeypatch, path)
    if imported_first:
        import_module("announced_codebooks")
    assert made["signs"] is sys.modules["announced_codebooks"].Signs


def test_a_class_of_another_package_does_not_take_an_announced_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = announce(monkeypatch, "not_imported_for_this:Signs")
    with pytest.raises(MedarError, match="already registered, by not_imported_for_this:Signs"):
        made.register("signs")(Own)


@pytest.mark.parametrize("entry", ["", "."])
def test_a_model_folder_imports_nothing_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    for name in ("module_here.py", "package_here/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("class Here:\n    pass\n")
    (tmp_path / "linked_here.py").symlink_to(tmp_path / "package_here" / "__init__.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(entry)
    made = registry()
    for module in ("module_here", "package_here", "linked_here"):
        with pytest.raises(MedarError, match=f"import {module} first, or install it"):
            made.load_external("here", f"{module}:Here")
        assert module not in sys.modules
    import_module("module_here")  # by the user
    made.load_external("here", "module_here:Here")
    assert made["here"].__name__ == "Here"
    del sys.modules["module_here"]


@pytest.mark.parametrize("path", ["os:system", "collections:OrderedDict", "os"])
def test_a_model_folder_names_only_classes_of_the_right_kind(path: str) -> None:
    with pytest.raises(
        MedarError, match=r"codebook 'own': .* (does not derive from Own|cannot be imported)"
    ):
        registry().load_external("own", path, Own)
