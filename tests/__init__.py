"""Tests: real processes, watched from outside."""
