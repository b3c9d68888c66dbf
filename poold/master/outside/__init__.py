"""The master's contact with processes that are neither clients nor children.

These are the clients of the control socket, the service manager and the readers of the gauges.
"""
