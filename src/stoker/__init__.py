"""Stoker keeps small language models running."""

__version__ = "0.1.0"
