"""The run's configuration: its models, its file, its reference."""
