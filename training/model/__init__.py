"""The Llama model: its parts, its optimizer, and how it is spread over the ranks."""
