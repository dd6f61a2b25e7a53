"""Tests of streamvae.codecs."""
