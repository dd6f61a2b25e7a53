"""Tests of `streamvae.latents`."""
