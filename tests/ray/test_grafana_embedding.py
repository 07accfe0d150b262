"""Ray's dashboard embeds our Grafana dashboard, configured as docs/operations says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..support.http_server import QuietHandler, serving
from ..support.loopback_cluster import loopback_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DASHBOARD = Path(__file__).parents[2] / "jobs" / "deploy" / "grafana-dashboard.json"


class Grafana(QuietHandler):
    """The health check that Ray makes before it embeds a dashboard."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"database": "ok"}')


def test_dashboard_replaces_that_of_ray_data():
    ours = json.loads(DASHBOARD.read_text())
    with serving(Grafana) as host:
        variables = {"RAY_GRAFANA_HOST": host, "RAY_GRAFANA_DATA_DASHBOARD_UID": ours["uid"]}
        with loopback_cluster(0, token=None, **variables) as cluster:
            status, body = cluster.http("/api/grafana_health")
    assert status == 200
    data = json.loads(body)["data"]
    assert data["grafanaHost"] == host and data["dashboardUids"]["data"] == ours["uid"]
    names = {variable["name"] for variable in ours["templating"]["list"]}
    assert "datasource" in names, "Ray passes its Prometheus in the URL, as var-datasource"
