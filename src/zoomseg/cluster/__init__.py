"""Prediction on several machines: scans as tasks of a Dask cluster."""
