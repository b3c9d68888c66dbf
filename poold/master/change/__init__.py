"""Replacing the settings, trying what would replace them, and ending."""
