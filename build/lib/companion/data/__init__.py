"""Data sets as tensors, with their place, licence and checksum; a module each kind."""
