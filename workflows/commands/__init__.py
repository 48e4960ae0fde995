"""One module per command: parse, call one library function, print."""
