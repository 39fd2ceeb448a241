"""Runs units through stages, and tells how far they are; knows no particular stage."""
