"""What tests of several rooms share: small data sets, models, recipes, files and servers."""
