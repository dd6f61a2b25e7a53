"""Loading an autoencoder: with and without accelerate, with and without a connection."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from streamvae import UnknownSourceError
from streamvae.models._load import load_autoencoder
from tests import tiny

COMMIT = "0a1b" * 10

#: diffusers gives the hub's client an argument that this no longer has.
old_argument = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")


def test_nothing_is_said_without_accelerate() -> None:
    """In a fresh install, which has no accelerate, diffusers has nothing to warn of."""
    code = (
        "import sys\n"
        "sys.modules['accelerate'] = None\n"
        "from streamvae.models import DEFAULT_VAE\n"
        "from streamvae.models._load import load_autoencoder\n"
        "print(type(load_autoencoder(DEFAULT_VAE)).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("AutoencoderKLWan\n", "")


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection the pipeline's folder is looked for in the cache alone."""
    asked = list[tuple[str | None, bool]]()

    def download(name: str, *, subfolder: str | None, local_files_only: bool, **more: object):  # type: ignore[no-untyped-def]
        asked.append((subfolder, local_files_only))
        raise LocalEntryNotFoundError("not in the cache" if local_files_only else "no connection")

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    with pytest.raises(UnknownSourceError, match="'some/pipeline' or in its 'vae': no connection$"):
        load_autoencoder("some/pipeline")
    assert asked == [(None, False), ("vae", True)]


@old_argument
@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_from_the_cache(subfolder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's client has kept is loaded without a connection, a pipeline's too."""
    kept = tmp_path / "models--some--thing"
    expected = tiny.wan21()
    expected.save_pretrained(kept / "snapshots" / COMMIT / subfolder)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)

    loaded = load_autoencoder("some/thing")

    weights = expected.state_dict()
    assert all(torch.equal(weights[name], one) for name, one in loaded.state_dict().items())
