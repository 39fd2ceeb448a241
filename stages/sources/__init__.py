"""Readers of speech and instruction sources: they plan slices of files and read one slice."""
