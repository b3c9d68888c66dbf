"""The processes that the master starts, of every kind."""
