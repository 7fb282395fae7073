"""Flows in containers: the image, and the pool that runs it."""
