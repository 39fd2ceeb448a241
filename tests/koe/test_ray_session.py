"""Ray is started without a change to what this process logs."""

import logging

import pytest

from koe.ray_session import ray_session


@pytest.mark.slow
def test_the_root_logger_stays_as_it_was():
    import ray

    root = logging.getLogger()
    before = root.level, list(root.handlers)
    quiet = ray.LoggingConfig(log_level="ERROR")
    with ray_session(None, 1, {}, logging_config=quiet):
        assert (root.level, list(root.handlers)) == before
    assert (root.level, list(root.handlers)) == before
