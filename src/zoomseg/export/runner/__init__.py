"""What an exported zip runs: the cascade in numpy, without torch."""
