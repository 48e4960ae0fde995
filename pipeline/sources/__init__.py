"""One module per kind of input; every one of them gives the same `Clip`."""
