"""A folder of its own with latents, an autoencoder on disk, and the command in this process."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from streamvae.cli import app
from tests import tiny

from .command import LATENTS, Invoke


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 autoencoder in diffusers' format."""
    folder = tmp_path_factory.mktemp("vae")
    tiny.wan21().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"latents": LATENTS}, "z.safetensors")


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process."""
    runner = CliRunner()

    def run(*args: object) -> Result:
        return runner.invoke(app, [str(arg) for arg in args])

    return run
