"""The version, in a module of its own below all others."""

__version__ = "0.1.0"
