"""Whole jobs, each on one screen: run, validate, features, status."""
