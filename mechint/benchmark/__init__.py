"""Measuring mask methods against each other, and the program against the plain model."""
