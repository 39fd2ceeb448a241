"""Exports a checkpoint for those who use the model, and the documents for those who go on training it."""
