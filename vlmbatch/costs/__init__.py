"""What rows cost at the least, and what that takes on a GPU. No torch."""
