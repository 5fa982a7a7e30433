"""Labelled data sets: layouts, splits, audit and repair, series with their drawings, phantoms."""
