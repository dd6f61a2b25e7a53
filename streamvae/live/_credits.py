"""What a client over a WebSocket answers, and what it may be sent before it does."""

from __future__ import annotations

import asyncio
import json
from collections import deque

from ._shutdown import Receive


class Credits:
    """How many more frames a client may be sent: those on their way are bounded.

    Args:
        most: Frames on their way at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._out: deque[int] = deque()
        self._freed = asyncio.Event()

    def sent(self, index: int) -> None:
        """Count a frame that is on its way now."""
        self._out.append(index)

    def acknowledge(self, index: int) -> None:
        """Count all frames up to ``index`` as arrived."""
        while self._out and self._out[0] <= index:
            self._out.popleft()
        self._freed.set()

    async def room(self) -> None:
        """Wait until one more may be sent."""
        while len(self._out) >= self._most:
            self._freed.clear()
            await self._freed.wait()


class UnwelcomeError(Exception):
    """Raised when a client says what is not in the protocol."""


async def heard(receive: Receive, account: Credits) -> None:
    """Hear the client's answers until it is gone.

    Raises:
        UnwelcomeError: It said something else.
    """
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        account.acknowledge(_index(message.get("text")))


def _index(text: object) -> int:
    try:
        said = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        said = None
    index = said.get("ack") if isinstance(said, dict) else None
    if not isinstance(index, int) or isinstance(index, bool):
        raise UnwelcomeError('expected {"ack": <frame index>}')
    return index
