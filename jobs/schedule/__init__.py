"""Scheduled refreshes: cron expressions, systemd units, KubeRay manifests."""
