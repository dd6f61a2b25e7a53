"""Tiny real image pipelines, one module for those over each kind of denoiser."""

from __future__ import annotations

from tests.latents.pipelines.case import Case

from . import tokens, transformers, unets

CASES: tuple[Case, ...] = unets.CASES + transformers.CASES + tokens.CASES
