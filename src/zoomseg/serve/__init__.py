"""Segmentation in the browser: page, jobs and workers of a local server."""
