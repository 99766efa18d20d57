"""Evaluation of reconstructions, generated volumes and label maps.

Each protocol has a name and a version, and says in its report how every value was computed.
"""
