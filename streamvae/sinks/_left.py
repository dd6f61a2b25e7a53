"""What an interrupted stream left, read with suspicion: it may have been changed since."""

from __future__ import annotations

import json
from pathlib import Path

from streamvae._errors import UsageError


def damaged(path: Path, got: str) -> UsageError:
    """The error for what cannot be gone on with.

    Args:
        path: What is damaged.
        got: What is wrong with it.
    """
    return UsageError(
        f"expected {path} as an interrupted stream leaves it, got {got}; nothing was touched; "
        "decode without resume to begin anew"
    )


def read_object(path: Path) -> dict[str, object] | None:
    """The JSON object in a file.

    Returns:
        None if the file is not there, or blank, as a kill or a loss of power leaves one that was
        not written yet.

    Raises:
        UsageError: There is something else in it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged(path, f"none that can be read ({error.strerror})") from error
    if not data.strip(b"\0 \n"):
        return None
    try:
        held = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "what is no JSON") from error
    if not isinstance(held, dict):
        raise damaged(path, f"JSON of {type(held).__name__}")
    return held


def sizes(held: object) -> tuple[int, ...] | None:
    """Whole numbers from 0 on, as JSON lists them; None if it is anything else."""
    if not isinstance(held, list) or any(type(one) is not int or one < 0 for one in held):
        return None
    return tuple(held)
