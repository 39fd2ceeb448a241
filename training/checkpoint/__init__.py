"""Checkpoints: writing, folders, tensor files, rollback."""
