"""Campaigns: longer than a test, bounded, each a command of its own."""
