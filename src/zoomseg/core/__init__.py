"""Geometry, regions, tiling, labels, volumes, resampling and errors; independent of files and recipes."""
