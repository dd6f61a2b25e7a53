"""Look at the frames while the rest is still being decoded, in any terminal with colours."""

import asyncio
import sys

import numpy as np

from streamvae import Frame, stream_decode
from streamvae.models import demo_latents

COLUMNS, LINES = 64, 18


def draw(frame: Frame) -> str:
    """A picture of coloured half blocks: two pixels to a character."""
    picture = np.asarray(frame.to_pil().resize((COLUMNS, 2 * LINES)))
    rows = []
    for upper, lower in zip(picture[::2], picture[1::2], strict=True):
        pairs = zip(upper.tolist(), lower.tolist(), strict=True)
        cells = (f"\x1b[38;2;{a};{b};{c}m\x1b[48;2;{d};{e};{f}m▀" for (a, b, c), (d, e, f) in pairs)
        rows.append("".join(cells) + "\x1b[0m")
    return "\n".join(rows)


async def main() -> None:
    """Show each frame as it comes, and leave early."""
    latents, fps = demo_latents()
    async with stream_decode(latents, fps=fps) as stream:
        async for frame in stream:
            if sys.stdout.isatty():
                # Drawn in a thread: a blocked loop would hold up the stream.
                print(f"\x1b[H\x1b[J{await asyncio.to_thread(draw, frame)}")
            print(f"frame {frame.index} at {frame.time:.2f} s")
            if frame.index == 4:
                break  # nothing more is launched


asyncio.run(main())
