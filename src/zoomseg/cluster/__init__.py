"""Prediction on many machines: scans as tasks of a Dask cluster."""
