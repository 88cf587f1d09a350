"""Batch norms of a network that has become smaller."""
