"""Environments and their symmetries, one file per family.

Importing `equirl` registers them by name; each file is imported when first used.
"""
