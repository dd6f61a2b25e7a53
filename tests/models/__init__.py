"""Of `streamvae.models`."""
