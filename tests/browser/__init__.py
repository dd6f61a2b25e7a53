"""What browsers make of the files; needs Debian's chromium, and is left out without it."""
