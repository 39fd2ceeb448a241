"""Compiling C at run time, running models deterministically, and batches that fit into memory."""
