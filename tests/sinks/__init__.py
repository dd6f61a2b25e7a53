"""Tests of streamvae.sinks."""
