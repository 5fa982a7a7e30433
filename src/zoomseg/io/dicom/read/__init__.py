"""DICOM files as volumes and label maps: discovery, splitting, geometry, decoding."""
