"""A DICOM node: receives series, segments them by rules, and sends the results back."""
