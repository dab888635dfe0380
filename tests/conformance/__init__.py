"""Conformance with torch itself: its OpInfo database, and random graphs, against eager."""
