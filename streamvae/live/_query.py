"""What a request asks for, in its address or in JSON: checked, with one clear message."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Literal, cast

from ._policies import Block, DropOldest, Latest, Policy
from ._problems import Problem

#: Frames a second that may be asked for.
FPS = (1.0, 240.0)

#: Characters of a name; frames that may wait for a viewer.
MAX_NAME, MAX_FRAMES = 200, 256


class Query:
    """Options of a request, each read once by name.

    Args:
        given: The query's parameters, or a JSON object.
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        self._given = given

    def name(self, default: str) -> str:
        """What people call a job.

        Raises:
            Problem: 422: it is a path, or cannot be shown in a line.
        """
        name = self._given.get("name")
        if name is None or name == "":
            return default
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise Problem(422, f"expected a name of {MAX_NAME} printable characters at most")
        if name in {".", ".."} or "/" in name or "\\" in name:
            raise Problem(422, "expected a file's name, got a path")
        return name

    def fps(self, default: float) -> float:
        """Frames a second.

        Raises:
            Problem: 422: it is no such number.
        """
        given = self._given.get("fps")
        if given is None:
            return default
        fps = math.nan
        if isinstance(given, str | int | float) and not isinstance(given, bool):
            with contextlib.suppress(ValueError, OverflowError):
                fps = float(given)
        if not FPS[0] <= fps <= FPS[1]:
            raise Problem(422, f"expected fps in {FPS[0]:g}..{FPS[1]:g}, got {str(given)[:40]!r}")
        return fps

    def expect_demo(self) -> None:
        """See that the demo is asked for.

        Raises:
            Problem: 422: it is not.
        """
        if self._given.get("demo") is not True:
            raise Problem(422, 'expected {"demo": true}, or a file of latents as the body')

    def on_idle(self) -> Literal["finish", "cancel"]:
        """What a job does when its last viewer has left."""
        return cast("Literal['finish', 'cancel']", self._one_of("on_idle", "finish", "cancel"))

    def start(self) -> Literal["now", "viewer"]:
        """When a job begins."""
        return cast("Literal['now', 'viewer']", self._one_of("start", "now", "viewer"))

    def keep(self) -> bool:
        """Whether a job that is stopped is kept."""
        return self._one_of("keep", "false", "true") == "true"

    def policy(self) -> Policy | None:
        """What happens when a viewer is slower than the decode; None for the format's own."""
        name = self._one_of("policy", "default", "latest", "drop_oldest", "block")
        room = self._count("n", 8)
        chosen: dict[str, Policy | None] = {
            "default": None,
            "latest": Latest(),
            "drop_oldest": DropOldest(room),
            "block": Block(room),
        }
        return chosen[name]

    def _one_of(self, name: str, *known: str) -> str:
        """The option, by default the first one known."""
        given = self._given.get(name, known[0])
        if given not in known:
            raise Problem(422, f"expected {name} in {', '.join(known)}, got {str(given)[:40]!r}")
        return str(given)

    def _count(self, name: str, default: int) -> int:
        given = str(self._given.get(name, default))
        if not (given.isascii() and given.isdecimal() and len(given) < 6) or (
            not 1 <= int(given) <= MAX_FRAMES
        ):
            raise Problem(422, f"expected {name} in 1..{MAX_FRAMES}, got {given[:40]!r}")
        return int(given)
