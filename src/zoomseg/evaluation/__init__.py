"""Metrics, upper bounds, error attribution, calibration, comparison and reports."""
