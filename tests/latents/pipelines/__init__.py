"""Tiny real pipelines, one module for those over each kind of autoencoder."""

from __future__ import annotations

from . import cog, cosmos, frames, ltx, ltx2, scaled, wan
from .case import Case

CASES: tuple[Case, ...] = (
    *wan.CASES,
    *cosmos.CASES,
    *cog.CASES,
    *ltx.CASES,
    *ltx2.CASES,
    *scaled.CASES,
    *frames.CASES,
)
