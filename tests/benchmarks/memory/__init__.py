"""How fast, how large, how exact memory is, beside the libraries it could have been. Knows nothing of answers."""
