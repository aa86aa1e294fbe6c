"""Images decoded and resized in processes of their own, so that a bad one costs a row at most."""
