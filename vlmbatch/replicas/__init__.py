"""Where requests are answered: one interface, and one engine or several behind it."""
