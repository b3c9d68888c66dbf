"""The logger: the process that alone writes to the log's stream, if that is a file or a socket.

A write to a file waits as long as the disk stands still. A process that has the log's file open can
truncate the file, move its position, and switch the file to O_NONBLOCK. The other processes
therefore write into pipes. Only the logger waits for the disk, and only the logger has the file
open.
"""
