"""A DICOM node: receives series, segments them by rules, and returns the results."""
