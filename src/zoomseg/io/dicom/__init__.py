"""DICOM series and objects, read and written."""
