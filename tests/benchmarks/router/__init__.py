"""Measurements of routers on public outcomes."""
