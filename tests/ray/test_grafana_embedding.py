"""Ray's own dashboard embeds our Grafana dashboard, as docs/operations.md says it is told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..support.loopback_cluster import loopback_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DASHBOARD = Path(__file__).parents[2] / "jobs" / "deploy" / "grafana-dashboard.json"


class Grafana(BaseHTTPRequestHandler):
    """As much of a Grafana as Ray asks before it embeds anything: that it is healthy."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"database": "ok"}')

    def log_message(self, *arguments: object) -> None:
        pass


def test_the_dashboard_takes_the_place_of_ray_datas():
    grafana = ThreadingHTTPServer(("127.0.0.1", 0), Grafana)
    threading.Thread(target=grafana.serve_forever, daemon=True).start()
    ours = json.loads(DASHBOARD.read_text())
    host = f"http://127.0.0.1:{grafana.server_port}"
    told = {"RAY_GRAFANA_HOST": host, "RAY_GRAFANA_DATA_DASHBOARD_UID": ours["uid"]}
    try:
        with loopback_cluster(0, token=None, **told) as cluster:
            status, body = cluster.http("/api/grafana_health")
    finally:
        grafana.shutdown()
        grafana.server_close()
    assert status == 200
    data = json.loads(body)["data"]
    assert data["grafanaHost"] == host and data["dashboardUids"]["data"] == ours["uid"]
    variables = {variable["name"] for variable in ours["templating"]["list"]}
    assert "datasource" in variables, "Ray names its Prometheus in the address, as var-datasource"
