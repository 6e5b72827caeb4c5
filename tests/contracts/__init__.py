"""The contract that every rule signs, over everything in the families' ``__all__``; the laws themselves are in ``lightning_byz.testing``."""
