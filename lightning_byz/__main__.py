"""``python -m lightning_byz`` is the command ``lightning-byz``."""

from .cli import main

if __name__ == "__main__":
    main()
