"""``python -m streamvae``: the command ``streamvae``."""

from .cli import main

if __name__ == "__main__":
    main()
