"""Recipe numbers derived from a data set, a device and a time budget, each with its rationale."""
