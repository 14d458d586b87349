"""Metrics, request logs and traces."""
