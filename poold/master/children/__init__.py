"""Any process that the master starts, whatever its kind."""
