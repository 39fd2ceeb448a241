"""Decoding audio files and reading their headers."""
