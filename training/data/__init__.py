"""The shards as rows, the rows of each step, and the batches made of them."""
