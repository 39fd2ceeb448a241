"""What is said or refused about a source before any work."""
