"""What changes a running daemon: reloads, the trials of new settings, and the end."""
