"""Helpers shared by tests of several packages: small data sets, models, recipes, files and servers."""
