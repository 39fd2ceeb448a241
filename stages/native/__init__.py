"""Compiling C at run time, and running models deterministically."""
