"""The ground: contracts and helpers that every package shares; it knows none of them."""
