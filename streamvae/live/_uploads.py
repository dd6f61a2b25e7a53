"""Files of latents from the network: looked into before they are stored, and gone when they fail.

The first bytes are kept in memory until the header is known. Only when it names latents that the
codec decodes, of a size that is allowed and that the disk has room for, is a file made; its name is
random. What does not come to its end, for whatever reason, is removed.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from .._threads import Worker, outcome
from ._headers import LatentsHeader, header_bound, parse_header
from ._problems import Problem

logger = logging.getLogger("streamvae")

#: Bytes written at once.
_BLOCK = 1 << 20

#: Bytes that stay free on the disk.
_SPARE = 64 << 20

#: What is read and thrown away after a refusal, in bytes and seconds: a client that still sends
#: when the connection is closed never reads why.
_LINGER = (64 << 20, 1.0)


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of latents that came whole.

    Attributes:
        path: Where it is.
        header: What it says of itself.
    """

    path: Path
    header: LatentsHeader


class Uploads:
    """Receives files into a folder, a bounded number at a time.

    Args:
        folder: Where they go; it is there.
        max_bytes: Bytes of a file at most.
        max_uploads: Files that may be under way at once.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_uploads: int = 64) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_uploads = max_uploads
        self._reserved = 0
        self._worker = Worker("streamvae-uploads")
        #: Uploads under way.
        self.active = 0

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()

    async def receive(
        self, body: Body, declared: int | None, check: Callable[[LatentsHeader], None]
    ) -> Stored:
        """Store the body of a request.

        Args:
            body: The request's.
            declared: Its ``Content-Length``, if it has one.
            check: Called with the header before anything is stored; raises to refuse it.

        Raises:
            Problem: It is refused, and nothing of it is left: 400, 413, 415, 422; 408: no byte came
                for too long; 503: too many at once; 507: the disk has no room.
            ClientDisconnect: The client went away; nothing of it is left.
        """
        if self.active >= self._max_uploads:
            raise Problem.later(f"{self.active} uploads are under way, as many as may", 1)
        self.active += 1
        try:
            return await self._receive(body, declared, check)
        finally:
            self.active -= 1

    def discard(self, stored: Stored) -> None:
        """Remove a stored file, soon: `settled` waits for it."""
        self._worker.submit(_remove, None, stored.path)

    async def settled(self) -> None:
        """Return when everything that was given up is removed."""
        await outcome(self._worker.submit(_nothing), keep=True)

    async def _receive(
        self, body: Body, declared: int | None, check: Callable[[LatentsHeader], None]
    ) -> Stored:
        if declared is not None:
            self._check_size(declared)
        head = await body.block(bytearray(), 12)
        while (header := parse_header(bytes(head), complete=body.over)) is None:
            head = await body.block(head, min(2 * len(head), header_bound()))
        self._check_size(header.size)
        if declared is not None and declared != header.size:
            raise Problem(
                400, f"expected {header.size} bytes, as the file's header says, got {declared}"
            )
        check(header)
        return await self._store(body, head, header)

    async def _store(self, body: Body, head: bytearray, header: LatentsHeader) -> Stored:
        path = self._folder / f"{secrets.token_hex(16)}.{header.format}"
        # Reserved before the disk is looked at: those who are let in together share its room.
        self._reserved += header.size
        opening: Future[io.BufferedWriter] | None = None
        try:
            await outcome(self._worker.submit(_expect_room, self._folder, self._reserved))
            opening = self._worker.submit(_create, path)
            file = await outcome(opening, keep=True)
            await self._fill(file, body, head, header.size)
            await outcome(self._worker.submit(file.close), keep=True)
        except OSError as error:
            await self._remove(opening, path)
            logger.warning("an upload could not be stored: %s", error)
            raise Problem(507, "the server has no room for this file") from None
        except BaseException:
            await self._remove(opening, path)
            raise
        finally:
            self._reserved -= header.size
        return Stored(path, header)

    async def _fill(self, file: io.BufferedWriter, body: Body, block: bytearray, size: int) -> None:
        written = 0
        while True:
            block = await body.block(block, _BLOCK)
            written += len(block)
            if written > size:
                raise Problem(400, f"expected {size} bytes, as the file's header says, got more")
            await outcome(self._worker.submit(file.write, bytes(block)), keep=True)
            if body.over:
                break
            block = bytearray()
        if written < size:
            raise Problem(400, f"expected {size} bytes, as the file's header says, got {written}")

    async def _remove(self, opening: Future[io.BufferedWriter] | None, path: Path) -> None:
        """Close and remove, behind whatever the thread still does; done even if not waited for."""
        removing = self._worker.submit(_remove, opening, path)
        with anyio.CancelScope(shield=True):
            await outcome(removing, keep=True)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise Problem(413, f"expected a file of {self._max_bytes} bytes at most, got {size}")


class Body:
    """The body of a request, read in blocks.

    Args:
        receive: The request's.
        patience: Seconds that may pass until the next bytes.

    Attributes:
        over: Whether all of it has come.
    """

    def __init__(self, receive: Receive, patience: float = 30.0) -> None:
        self._receive = receive
        self._patience = patience
        self.over = False

    async def block(self, block: bytearray, size: int) -> bytearray:
        """Add to ``block`` until it has ``size`` bytes or more, or the body is over.

        Raises:
            Problem: 408: nothing came for too long.
            ClientDisconnect: The client went away.
        """
        while len(block) < size and not self.over:
            try:
                with anyio.fail_after(self._patience):
                    message = await self._receive()
            except TimeoutError:
                self.over = True
                raise Problem(
                    408, f"expected more of the file within {self._patience:g} s, got nothing"
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            block += message.get("body", b"")
            self.over = not message.get("more_body", False)
        return block

    async def json(self, limit: int = 1 << 16) -> dict[str, object]:
        """The JSON object that it is.

        Raises:
            Problem: 400: it is none. 408: it does not come. 413: it is longer than ``limit`` bytes.
            ClientDisconnect: The client went away.
        """
        text = await self.block(bytearray(), limit + 1)
        if len(text) > limit:
            raise Problem(413, f"expected {limit} bytes of JSON at most, got more")
        try:
            told = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            raise Problem(400, 'expected a JSON object, such as {"demo": true}') from None
        if not isinstance(told, dict):
            raise Problem(400, f"expected a JSON object, got {type(told).__name__}")
        return told

    async def linger(self) -> None:
        """Read on for a moment, and forget it, before its request is refused."""
        left, seconds = _LINGER
        with anyio.move_on_after(seconds):
            while left > 0 and not self.over:
                message = await self._receive()
                left -= len(message.get("body", b""))
                self.over = not message.get("more_body", False)


def _expect_room(folder: Path, wanted: int) -> None:
    """Raise OSError where the disk has no room for what was let in."""
    free = shutil.disk_usage(folder).free
    if free < wanted + _SPARE:
        raise OSError(f"{free} bytes are free, {wanted} were promised to uploads")


def _create(path: Path) -> io.BufferedWriter:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _remove(opening: Future[io.BufferedWriter] | None, path: Path) -> None:
    """Runs behind the opening, on its thread: that is over, whoever still waits for it."""
    if opening is not None and opening.exception() is None:
        with contextlib.suppress(OSError):  # what it still holds finds no room
            opening.result().close()
    path.unlink(missing_ok=True)


def _nothing() -> None:
    pass
