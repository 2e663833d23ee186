"""Ten research papers as executable notebooks whose every claim is checked."""

__version__ = "0.1.0"
