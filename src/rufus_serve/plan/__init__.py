"""Capacity and latency of a model on Trainium nodes, by arithmetic alone."""
