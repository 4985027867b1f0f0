"""Prometheus metrics, by the names under which dashboards and alerts find them."""
