"""The page that shows answers, and what it is made of."""
