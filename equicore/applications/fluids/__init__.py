"""Flows on a periodic square, and networks that predict them."""
