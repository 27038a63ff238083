"""A launch on a Ray cluster, through the one HTTP port of its dashboard."""
