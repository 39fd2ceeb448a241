"""The DNSMOS scorer and the engines that run it."""
