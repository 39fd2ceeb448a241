"""Tokenizers, and the layouts of conversations."""
