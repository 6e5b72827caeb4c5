"""The contract that every rule signs: the laws that concern rules, over everything in the families' ``__all__``."""
