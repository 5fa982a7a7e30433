"""Atlas priors: registration of labelled scans, and label fusion."""
