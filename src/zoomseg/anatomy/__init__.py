"""Organ names and synonyms, standard codes, display colours, measurements and plausibility checks."""
