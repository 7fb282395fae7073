"""Where bytes are kept: one interface, an implementation a file."""
