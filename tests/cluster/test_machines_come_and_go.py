"""Machines are lost in the middle of a run and others join: the bytes are those of the plain runner."""

from __future__ import annotations

import pytest

from tests.cluster.losses import lose_machines
from tests.cluster.machines import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.timeout(500)
def test_a_machine_is_lost_and_another_joins(tmp_path):
    assert set(lose_machines(tmp_path)) == {"head", "lost-0", "joined"}
