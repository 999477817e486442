"""Published metrics, one function each; depends on nothing but numpy and the error tree."""
