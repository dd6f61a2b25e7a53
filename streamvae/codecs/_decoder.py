"""What the decoders of all families have in common: that they end once, on every way out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from streamvae._errors import ClosedError


class StreamDecoder(ABC):
    """One stream's state over a codec, closed when a step fails; see `streamvae.abc.Decoder`.

    A family says what the next chunk gives (`_push`), and where there is any, what the end gives
    (`_rest`) and what is to be let go of (`_clear`).

    Raises:
        ClosedError: On every call but `close`, once it is closed.
    """

    _closed = False

    def begin(self, latents: torch.Tensor) -> None:  # noqa: ARG002
        """Nothing is done to all latents at once. See `streamvae.abc.Decoder.begin`."""
        self._require_open()

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """See `streamvae.abc.Decoder.decode`."""
        return self._safely(lambda: self._push(latents))

    def drain(self) -> torch.Tensor | None:
        """See `streamvae.abc.Decoder.drain`."""
        return self._safely(self._rest)

    def close(self) -> None:
        """See `streamvae.abc.Decoder.close`."""
        self._closed = True
        self._clear()

    @abstractmethod
    def _push(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Decode the next chunk; None when there is nothing to give yet."""

    def _rest(self) -> torch.Tensor | None:
        """Give what is held after the last chunk: nothing."""
        return None

    def _clear(self) -> None:
        """Let go of all state, in place: frames of a kept traceback may still know it."""
        return

    def _safely(self, step: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        self._require_open()
        try:
            return step()
        except BaseException:
            # State half a step ahead would give wrong frames, and may be gigabytes.
            self.close()
            raise

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("expected an open decoder, got one that was closed")
