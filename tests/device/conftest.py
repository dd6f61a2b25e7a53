"""Autoencoders that the device tests share."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae.backends._cuda import CudaDriver
from streamvae.backends._streamed import StreamedBackend

from . import card


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    """Wan 2.1 with few channels, bfloat16."""
    return card.wan()


@pytest.fixture(scope="session")
def real() -> AutoencoderKLWan:
    """Wan 2.1 as it is shipped, bfloat16, random weights."""
    return card.wan_real()


@pytest.fixture
def backend() -> Iterator[StreamedBackend]:
    """A backend of the test's own, left idle."""
    driver = CudaDriver(card.DEVICE)
    yield StreamedBackend(driver)
    torch.cuda.synchronize()
