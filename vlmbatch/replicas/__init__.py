"""Where requests are answered: one interface, and the engine of this process behind it."""
