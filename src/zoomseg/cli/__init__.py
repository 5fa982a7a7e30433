"""The commands, one module each; what they do lies below."""
