"""The SNAC codec and the engines that run it."""
