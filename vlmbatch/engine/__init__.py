"""The continuous-batching engine: token ids and pixels in, token ids out."""
