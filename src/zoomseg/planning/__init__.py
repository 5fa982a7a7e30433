"""Recipe numbers planned from data, device and time, each with a reason."""
