"""Owns the embedded model `demo-xl`: what it learns from, how it is trained, judged and exported.

Nothing of the server imports this package; `python -m daguerre.demo` is its door.
"""
