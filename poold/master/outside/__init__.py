"""Whoever is neither client nor child: the control socket, the service manager, whoever reads the gauges."""
