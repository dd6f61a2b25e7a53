"""Tests of `streamvae.backends`."""
