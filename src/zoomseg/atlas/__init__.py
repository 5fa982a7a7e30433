"""Atlas priors: registration of labelled scans and fusion of their labels."""
