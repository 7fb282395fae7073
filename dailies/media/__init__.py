"""What a file holds and where its objects live.

One timeline for everything: integers of microseconds, zero at the container's start, times taken from the decoded
pts and never from a frame number over a rate.
"""
