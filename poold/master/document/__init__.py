"""The state document, which one program of the master leaves to the next one across an exec.

The document's parts, and how a part is read.
"""
