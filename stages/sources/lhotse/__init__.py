"""Sources of Lhotse's cuts: Shar, and manifests of cuts."""
