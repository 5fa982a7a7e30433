"""Planning: recipe numbers from data, device and time, each with a reason."""
