"""What users may import."""

import importlib
import inspect
import pkgutil
from importlib.resources import files

import pytest

import streamvae


def _public_modules() -> list[str]:
    walked = pkgutil.walk_packages(streamvae.__path__, "streamvae.")
    names = [module.name for module in walked]
    return ["streamvae", *(name for name in names if not _private(name))]


def _private(module: str) -> bool:
    return any(part.startswith("_") for part in module.split(".")[1:])


@pytest.mark.parametrize("module", _public_modules())
def test_what_a_module_lists_is_there(module: str) -> None:
    """Every name in a public module's ``__all__`` resolves, and is listed once."""
    imported = importlib.import_module(module)
    listed = getattr(imported, "__all__", ())
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(imported, name)] == []


@pytest.mark.parametrize("module", _public_modules())
def test_modules_say_what_they_are_about(module: str) -> None:
    """Every public module has a docstring."""
    assert (importlib.import_module(module).__doc__ or "").strip()


def test_the_package_lists_its_names() -> None:
    """The names of the package itself are all listed, so that a new one is meant."""
    there = {
        name
        for name, value in vars(streamvae).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert there - {"annotations"} == set(streamvae.__all__) - {"__version__"}


def test_the_package_s_names_are_documented() -> None:
    """Every class and function among the package's names has a docstring of its own."""
    values = {name: getattr(streamvae, name) for name in streamvae.__all__}
    documented = {name for name, value in values.items() if callable(value)}
    bare = [name for name in documented if not inspect.getdoc(values[name])]
    assert bare == []


def test_annotations_are_for_users_too() -> None:
    """The package says that it is typed."""
    assert files("streamvae").joinpath("py.typed").is_file()
