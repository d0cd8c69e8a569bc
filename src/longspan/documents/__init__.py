"""Reading files as documents: finding them, decoding them, mapping characters to lines, splitting on tokens."""
