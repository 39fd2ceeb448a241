from tests.shared import finished_run, one_tokenizer

__all__ = ["finished_run", "one_tokenizer"]
