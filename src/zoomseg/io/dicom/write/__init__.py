"""Results as DICOM SEG and RTSTRUCT."""
