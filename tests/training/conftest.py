from tests.training.helpers import one_thread

__all__ = ["one_thread"]
