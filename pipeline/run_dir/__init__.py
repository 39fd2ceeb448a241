"""What lies on disk for a run, and the one reader of it."""
