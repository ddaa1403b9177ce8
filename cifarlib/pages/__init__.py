"""Executed notebooks to one HTML page and to one typeset PDF."""
