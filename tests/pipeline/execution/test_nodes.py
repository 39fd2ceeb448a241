"""A run is refused, or waits for a said time, where the nodes cannot hold its workers."""

import pytest

from koe.errors import ConfigError
from koe.stage import Resources
from pipeline.execution import nodes
from pipeline.execution.nodes import local_options, require_room

CHAIN = {"ingest": Resources(cpus=0.5), "score": Resources(cpus=4, memory=1e9)}


@pytest.fixture
def cluster(monkeypatch):
    """A cluster that gets the nodes of `coming` one by one, while somebody waits."""

    class Cluster:
        has = [{"CPU": 2.0, "memory": 8e9}] * 3
        coming: list = []  # noqa: RUF012
        asked: list = []  # noqa: RUF012
        now = 0.0

        def sleep(self, seconds):
            self.now += seconds
            self.has = [*self.has, *self.coming[:1]]
            self.coming = self.coming[1:]

        def request(self, num_cpus=None, bundles=None):
            self.asked = [*self.asked, bundles if num_cpus is None else num_cpus]

    made = Cluster()
    monkeypatch.setattr(nodes, "live_nodes", lambda: made.has)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", made.request)
    monkeypatch.setattr(nodes.time, "sleep", made.sleep)
    monkeypatch.setattr(nodes.time, "monotonic", lambda: made.now)
    return made


def test_a_worker_larger_than_every_node_is_refused_at_once(cluster):
    with pytest.raises(ConfigError) as refused:
        require_room([CHAIN], 0.0)
    assert str(refused.value).startswith(
        "no node can hold a worker of score, which asks for 4 CPUs, 1 GB of memory because the "
        "cluster has 3 nodes of 2 CPUs, 8 GB of memory"
    )
    assert "ray.wait_minutes" in str(refused.value)
    assert cluster.asked == []
    require_room([{"ingest": Resources(cpus=0.5)}], 0.0)


def test_a_cluster_that_grows_is_asked_and_waited_for(cluster):
    cluster.coming = [{"CPU": 2.0}, {"CPU": 8.0, "memory": 2e9}]
    said = []
    require_room([CHAIN], 10.0, said.append)
    assert len(said) == 1
    assert said[0].endswith("waiting up to 10 minutes for more nodes")
    assert cluster.asked == [[need.amounts() for need in CHAIN.values()], 0]  # and taken back


def test_waiting_ends(cluster):
    with pytest.raises(ConfigError, match=r"none was added within 0\.5 minutes"):
        require_room([CHAIN], 0.5)
    assert cluster.now == 30.0
    assert cluster.asked[-1] == 0


def test_a_local_ray_has_room_for_one_worker_of_every_stage():
    huge = {"score": Resources(cpus=300, memory=9e15), "encode": Resources(cpus=0.5, memory=1e15)}
    options = local_options(1, [CHAIN, huge])
    assert options == {"num_cpus": 301, "_memory": 10**16, "resources": {}}
    options = local_options(None, [{"score": Resources(others={"fast_disk": 2.0})}])
    assert options["_memory"] > 1e8
    assert options["resources"]["fast_disk"] >= 2.0
    assert local_options(3, [])["num_cpus"] == 3
