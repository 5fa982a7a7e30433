"""DICOM files read as volumes and label maps: discovery, splitting, geometry, decoding."""
