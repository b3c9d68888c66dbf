"""How the master's process replaces its own program with the code that is on disk now."""
