"""Joins configuration, stages, trainer and engine into the jobs that commands run."""
