"""Whole models of the transformers library, tiny and with random weights, against eager."""
