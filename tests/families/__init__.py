"""Every family of video autoencoders, as one table for the tests."""
