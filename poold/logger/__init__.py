"""The logger: the process that alone writes to the log's stream, where that is a file or a socket.

A disk that stands still holds whoever writes to it, and an open file can be truncated, sought and switched to O_NONBLOCK by everybody who
has it. So everybody else writes into a pipe, and what waits, or could be damaged, is here.
"""
