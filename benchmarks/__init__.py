"""Measured figures, side by side with what they are compared to. `python -m benchmarks` runs all of them."""
