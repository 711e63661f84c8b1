"""The version of llavakit, written once.

The build reads this file; the native library is compiled with the same string and refused when it differs.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
