"""OpenAI's protocol: request bodies in, response objects out. No HTTP server, and no torch."""
