"""Evaluation of reconstructions, generated volumes and label maps.

Each protocol has a name and a version, and its report states how every value was computed.
"""
