"""What is promised of CUDA, tried on a CUDA device."""
