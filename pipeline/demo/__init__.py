"""The demo corpus: Japanese speech and instructions that need no network."""
