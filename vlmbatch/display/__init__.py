"""What a person sees: progress and summaries."""
