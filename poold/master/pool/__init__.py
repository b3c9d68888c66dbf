"""How the master gets workers, and gives each of them a connection."""
