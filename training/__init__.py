"""The koe trainer: shards in, checkpoints out."""
