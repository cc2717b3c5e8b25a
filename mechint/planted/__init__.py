"""Models whose Key and Value channels are known: truth to hold mask methods against."""
