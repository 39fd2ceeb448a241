"""The long form of the laws on faults: `python -m tests.soak` (`make soak`)."""
