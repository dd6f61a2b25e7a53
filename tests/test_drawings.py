"""Pictures that programs draw for the documentation."""

from __future__ import annotations

from tools.draw_fused_decode import PICTURE, picture


def test_the_fused_decode() -> None:
    """The picture of the fused decode is what its program draws."""
    assert PICTURE.read_text(encoding="utf-8") == picture()
