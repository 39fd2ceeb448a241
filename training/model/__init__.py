"""The Llama model and all that computes with it."""
