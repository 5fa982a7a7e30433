"""Atlas priors: registration of labelled scans, label fusion."""
