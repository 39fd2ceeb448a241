"""What became of one record."""
