"""Reading shards, batches, and which rows a step sees."""
