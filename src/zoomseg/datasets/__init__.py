"""Labelled data sets: layouts, splits, audit and repair, labels from DICOM, phantoms."""
