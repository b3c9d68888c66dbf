"""poold behind a real systemd: machines that boot in namespaces of this one, and the units that are shipped, tried there."""
