"""Burned-in captions: where they sit, when each one is shown, and what it says.

    report = extract(Path("film.mp4"), Path("out"))

Sparse whole frames give the layout; one decode of the rest gives strips of it, which are all that is kept.
"""
