"""The koe pipeline: configuration, units, ledger, engine and command line."""
