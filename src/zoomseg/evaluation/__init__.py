"""Metrics, upper bounds, error attribution, comparison, reports."""
