"""Files of every kind of source and of audio, damaged in any way: what the readers make of them."""
