"""The command line as a whole."""

import streamvae

from .command import Invoke, one_error


def test_version(invoke: Invoke) -> None:
    """``--version`` says which streamvae this is."""
    assert invoke("--version").stdout == f"streamvae {streamvae.__version__}\n"


def test_without_arguments_it_explains_itself(invoke: Invoke) -> None:
    """Alone, the command shows its help and succeeds."""
    result = invoke()
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("demo", "decode", "info"))


def test_an_unknown_command_is_one_line(invoke: Invoke) -> None:
    """A mistyped command is named, and the right one suggested."""
    assert "decode" in one_error(invoke("decod"), 2)


def test_traceback_on_demand(invoke: Invoke) -> None:
    """``--traceback`` shows where an error came from, and the line after it."""
    result = invoke("--traceback", "decode", "none.safetensors", "-o", "a.npy")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
