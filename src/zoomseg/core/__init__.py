"""Geometry, regions, tiling, labels, volumes, resampling and errors; knows no files and no recipes."""
