"""How a worker is made and meets its client."""
