"""Judgments without labels: collapse, copies, spectra, and the subspaces of MAST."""
