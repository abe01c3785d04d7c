"""Stoker keeps GPUs fed: the front door, what a user imports or types."""

__version__ = "0.1.0"
