"""Many machines: whole runs on a Ray cluster, and a class for the data frames of clusters."""

from vlmbatch.ray.answerer import Answerer

__all__ = ["Answerer"]
