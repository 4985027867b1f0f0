"""Placing, starting and watching followers; the only package that imports ray."""
