"""What the requests of an app share: the service, the uploads, the jobs, and the rules of all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.to_thread

from .._errors import StreamVAEError, UsageError
from ..abc import Codec
from ..latents import is_pipeline
from ..latents._cut import DTYPES
from ..models import DEMO_LATENTS
from ._headers import LatentsHeader, header_bound, parse_header
from ._jobs import Jobs
from ._problems import Problem
from ._service import Service
from ._uploads import Uploads

#: Pixels that a picture may have: those of 8K, which codecs and browsers still play.
_MOST_PIXELS = 7680 * 4320


@dataclass(frozen=True, slots=True)
class Settings:
    """What `streamvae.live.create_app` was told; see there."""

    folder: Path | None
    max_upload: int
    max_uploads: int
    max_kept: int
    normalized: bool
    fps: float


@dataclass(frozen=True, slots=True)
class Site:
    """What there is while the app's lifespan lasts.

    Attributes:
        service: What decodes.
        uploads: What receives files.
        jobs: What was asked for.
        settings: The rules.
        demo: What the demo's latents say of themselves.
        codec: What decodes them, of pictures.
        pipeline: Whether latents are those of a pipeline's call.
    """

    service: Service
    uploads: Uploads
    jobs: Jobs
    settings: Settings
    demo: LatentsHeader
    codec: Codec
    pipeline: bool

    def check(self, header: LatentsHeader) -> None:
        """Refuse latents that cannot be decoded here, by their header.

        Raises:
            Problem: 422, naming what was expected and what came.
        """
        codec, shape = self.codec, header.shape
        if header.dtype not in DTYPES:
            raise Problem(422, f"expected latents of floating point, got {header.dtype}")
        if (
            self.pipeline
        ):  # its latents may be packed: what they are is found out when they are read
            return
        if len(shape) != len(codec.layout) or 0 in shape:
            raise Problem(422, f"expected latents of shape ({codec.layout}), got {list(shape)}")
        if codec.kind == "video" and shape[0] != 1:
            raise Problem(422, f"expected the latents of one clip, got a batch of {shape[0]}")
        try:
            codec.check(shape)
        except StreamVAEError as error:
            raise Problem(422, str(error)) from None
        height, width = codec.picture(shape) or (0, 0)
        if height * width > _MOST_PIXELS:
            raise Problem(422, f"expected pictures up to 7680x4320, got {width}x{height}")


@contextlib.asynccontextmanager
async def opened(service: Service, settings: Settings) -> AsyncGenerator[Site, None]:
    """Load the weights and make folders; on the way out stop all jobs and remove all uploads.

    Raises:
        UsageError: The service decodes sound, or the folder cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(service)
        codec, health = service.codec, service.health()
        if codec.kind == "sound":
            raise UsageError(f"expected an autoencoder of pictures to serve, got {codec.family}")
        demo = await anyio.to_thread.run_sync(_demo)
        scratch = await anyio.to_thread.run_sync(_scratch, settings.folder)
        stack.push_async_callback(_removed, scratch)
        uploads = Uploads(scratch, max_bytes=settings.max_upload, max_uploads=settings.max_uploads)
        stack.callback(uploads.close)
        jobs = Jobs(
            service,
            settings.folder or scratch,
            uploads,
            most_open=health["max_streams"] + health["max_waiting"],
            most_kept=settings.max_kept,
            video=find_spec("av") is not None,
        )
        stack.push_async_callback(jobs.aclose)
        pipeline = is_pipeline(service._source)
        yield Site(service, uploads, jobs, settings, demo, codec, pipeline)


def _demo() -> LatentsHeader:
    with DEMO_LATENTS.open("rb") as file:
        header = parse_header(file.read(header_bound()), complete=False)
    assert header is not None  # noqa: S101  # the package's own file
    return header


def _scratch(folder: Path | None) -> Path:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".uploads-" if folder else "streamvae-", dir=folder))
    except OSError as error:
        raise UsageError(f"expected a folder to write to, but: {error}") from error


async def _removed(folder: Path) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
