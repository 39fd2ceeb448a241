from tests.shared import one_tokenizer

__all__ = ["one_tokenizer"]
