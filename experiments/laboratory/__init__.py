"""The measurements of `quadratic.py`, and what they are compared with."""
