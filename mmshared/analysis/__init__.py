"""Measurements of networks and runs, their tables and plots."""
