"""What crosses an exec: the state that one program of the master tells the next one, and how it is read."""
